//! AppArmor profiles: the default one, that of a name, none. The second machine (tests/vm) has AppArmor.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{Capability, ContainerConfig, SecurityProfile};
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::runtime::find;
use crate::support::spec::{ContainerOptions, script};
use crate::trials;

/// A profile of this run's own: nothing may be written.
const PROFILE: &str = "berth-test-deny-write";
const LABEL: &str = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current";

pub(crate) fn trials() -> Vec<Trial> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if !enabled.starts_with('Y') || !Path::new(&find("apparmor_parser")).exists() {
        eprintln!("apparmor: skipped, AppArmor is off here or has no apparmor_parser");
        return Vec::new();
    }
    trials![the_default_profile, a_profile_by_its_name, no_profile, profiles_that_are_not_there]
}

/// Profiles are the kernel's, not a namespace's: this one is loaded and taken away again.
fn parser(action: &str) {
    let mut parser = Command::new(find("apparmor_parser"))
        .args(["--skip-cache", action])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = format!(
        "profile {PROFILE} flags=(attach_disconnected) {{\n  file,\n  capability,\n  deny /** w,\n}}\n"
    );
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success(), "apparmor_parser {action}");
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
}

async fn printed(world: &World, config: &ContainerConfig) -> String {
    let (output, _) = world.output_of(&world.pod("apparmor"), config).await;
    output.trim_end().to_owned()
}

async fn the_default_profile(world: &mut World) {
    let image = world.image("busybox").await;
    assert_eq!(printed(world, &script("main", &image, LABEL)).await, "berth-default (enforce)");
    // What it is for: with every right to mount, a container can't.
    let line = "mkdir -p /m; mount -t tmpfs none /m 2>&1 && echo mounted; echo x >/proc/sys/kernel/domainname; \
                echo done; touch /file && echo written";
    let mut config = script("main", &image, line);
    config.security().capabilities =
        Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let output = printed(world, &config).await;
    assert!(!output.contains("mounted") && output.contains("denied"), "{output}");
    assert!(output.contains("done\nwritten"), "{output}");

    let pod = world.pod("exec");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.sleeper(&pod_id, &pod).await;
    assert_eq!(world.sh(&id, LABEL).await, "berth-default (enforce)");
    // Signals come through, and a new daemon does not take the profile away.
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, LABEL).await, "berth-default (enforce)");
    world.stop_container(&id, 0).await.unwrap();
    let pod_id = world.run_pod_with(&world.pod("by-runc"), "runc").await.unwrap();
    let id = world.sleeper(&pod_id, &world.pod("by-runc")).await;
    assert_eq!(world.sh(&id, LABEL).await, "berth-default (enforce)");
}

async fn a_profile_by_its_name(world: &mut World) {
    parser("--replace");
    let image = world.image("busybox").await;
    let line = format!("{LABEL}; touch /file && echo written");
    let wanted = format!("{PROFILE} (enforce)");
    let mut config = script("main", &image, &line);
    config.security().apparmor = profile(ProfileType::Localhost, PROFILE);
    let output = printed(world, &config).await;
    assert!(output.starts_with(&wanted) && !output.contains("written"), "{output}");
    #[allow(deprecated)]
    for (old, new) in [
        (format!("localhost/{PROFILE}"), None),
        ("unconfined".to_owned(), profile(ProfileType::Localhost, PROFILE)),
    ] {
        let mut config = script("main", &image, LABEL);
        config.security().apparmor_profile = old;
        // The new field decides where both are given.
        config.security().apparmor = new;
        assert_eq!(printed(world, &config).await, wanted);
    }
    parser("--remove");
}

async fn no_profile(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = script("main", &image, LABEL);
    config.security().apparmor = profile(ProfileType::Unconfined, "");
    assert_eq!(printed(world, &config).await, "unconfined");
    let mut config = script("main", &image, LABEL);
    config.security().privileged = true;
    let mut pod = world.pod("privileged");
    use crate::support::spec::PodOptions;
    pod.security().privileged = true;
    let (output, _) = world.output_of(&pod, &config).await;
    assert_eq!(output.trim_end(), "unconfined");
}

async fn profiles_that_are_not_there(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("missing");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = script("main", &image, LABEL);
    config.security().apparmor = profile(ProfileType::Localhost, "berth-test-no-such");
    let error = world.create(&pod_id, &pod, &config).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(
        error.message().contains("berth-test-no-such") && error.message().contains("loaded"),
        "{error:?}"
    );
}
