//! Users, groups, capabilities, privileges, seccomp, masked paths.

use std::os::unix::fs::MetadataExt;

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, Int64Value, NamespaceMode, PodSandboxConfig, SecurityProfile,
    SupplementalGroupsPolicy,
};
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::measure::pids_of;
use crate::support::runtime::binaries;
use crate::support::spec::{ContainerOptions, PodOptions, script};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        users_and_groups,
        users_of_execs,
        capabilities,
        privileged,
        no_new_privileges,
        masked_and_read_only_paths,
        seccomp_modes,
        seccomp_profile_from_a_file,
        pod_sysctls,
        the_runtimes_program_can_not_be_changed,
    ]
}

async fn printed(world: &World, config: &ContainerConfig) -> String {
    let (output, status) = world.output_of(&world.pod("security"), config).await;
    assert_eq!(status.exit_code, 0, "{output}");
    output.trim_end().to_owned()
}

async fn users_and_groups(world: &mut World) {
    const LINE: &str = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')";
    let busybox = world.image("busybox").await;
    let users = world.image("users").await;
    let root = script("main", &busybox, LINE);
    assert!(printed(world, &root).await.starts_with("0 0 0"));

    let from_image = script("main", &users, LINE);
    assert_eq!(printed(world, &from_image).await, "1000 1000 1000 2000");

    let mut by_number = script("main", &busybox, LINE);
    by_number.security().run_as_user = Some(Int64Value { value: 1001 });
    assert_eq!(printed(world, &by_number).await, "1001 4242 4242");

    let mut by_name = script("main", &busybox, LINE);
    by_name.security().run_as_username = "web".into();
    assert_eq!(printed(world, &by_name).await, "1000 1000 1000 2000");

    let mut unknown = script("main", &busybox, LINE);
    unknown.security().run_as_user = Some(Int64Value { value: 54321 });
    unknown.security().run_as_group = Some(Int64Value { value: 777 });
    unknown.security().supplemental_groups = vec![3000, 3001];
    assert_eq!(printed(world, &unknown).await, "54321 777 777 3000 3001");

    let mut strict = script("main", &users, LINE);
    strict.security().supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    strict.security().supplemental_groups = vec![3000];
    assert_eq!(printed(world, &strict).await, "1000 1000 1000 3000");

    let mut home = script("main", &users, "cat /home/web/hello");
    home.security().run_as_username = "web".into();
    assert_eq!(printed(world, &home).await, "hello");
}

/// An exec is whom the container is: groups, home directory, umask, limits.
async fn users_of_execs(world: &mut World) {
    const LINE: &str =
        "id -u; id -G | tr ' ' '\n' | sort -n | tr '\n' ' '; echo; echo $HOME; umask; ulimit -Hn";
    let users = world.image("users").await;
    for (policy, groups) in
        [(SupplementalGroupsPolicy::Merge, "1000 2000 3000"), (SupplementalGroupsPolicy::Strict, "1000 3000")]
    {
        let pod = world.pod("execs");
        let pod_id = world.run_pod(&pod).await.unwrap();
        let mut config = script("main", &users, &format!("{LINE}; exec sleep 100000"));
        config.security().supplemental_groups = vec![3000];
        config.security().supplemental_groups_policy = policy.into();
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let exec = world.sh(&id, LINE).await;
        let lines: Vec<&str> = exec.lines().map(str::trim).collect();
        assert_eq!(lines[..4], ["1000", groups, "/home/web", "0022"], "{exec}");
        let deadline = crate::support::within(10);
        while world.log_text(&pod, &config).lines().count() < lines.len() {
            assert!(std::time::Instant::now() < deadline, "{}", world.log_text(&pod, &config));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(world.log_text(&pod, &config).trim(), exec);
    }
}

/// The effective capabilities as bits.
async fn effective(world: &World, mut config: ContainerConfig) -> u64 {
    config.command = ["grep", "CapEff", "/proc/self/status"].map(String::from).to_vec();
    let line = printed(world, &config).await;
    u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
}

const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const MKNOD: u64 = 1 << 27;

async fn capabilities(world: &mut World) {
    let image = world.image("busybox").await;
    let plain = script("main", &image, "");
    let bits = effective(world, plain.clone()).await;
    // What every container runtime grants: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    // net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap. CRI-O leaves some out.
    assert_eq!(bits & !0xa804_25fb, 0, "{bits:x}");
    assert_ne!(bits & CHOWN, 0, "{bits:x}");

    let mut added = plain.clone();
    added.security().capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["MKNOD".into()],
        ..Default::default()
    });
    let bits = effective(world, added).await;
    assert_ne!(bits & NET_ADMIN, 0, "{bits:x}");
    assert_eq!(bits & MKNOD, 0, "{bits:x}");

    let mut none = plain.clone();
    none.security().capabilities =
        Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    assert_eq!(effective(world, none.clone()).await, 0);
    none.security().capabilities.as_mut().unwrap().add_capabilities = vec!["CHOWN".into()];
    assert_eq!(effective(world, none).await, CHOWN);

    let mut user = plain;
    user.security().run_as_user = Some(Int64Value { value: 1000 });
    assert_eq!(effective(world, user).await, 0);
}

async fn privileged(world: &mut World) {
    let image = world.image("busybox").await;
    let mut pod = world.pod("privileged");
    pod.security().privileged = true;
    let line = "grep CapEff /proc/self/status; test -e /dev/loop-control -o -e /dev/kmsg && echo devices; \
                grep Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted";
    let mut config = script("main", &image, line);
    config.security().privileged = true;
    let (output, status) = world.output_of(&pod, &config).await;
    assert_eq!(status.exit_code, 0, "{output}");
    let bits = output.split_whitespace().nth(1).unwrap();
    assert_ne!(u64::from_str_radix(bits, 16).unwrap() & SYS_ADMIN, 0, "{output}");
    assert!(output.contains("devices\n") && output.contains("mounted\n"), "{output}");
    assert!(output.contains("Seccomp:\t0"), "{output}");
}

async fn no_new_privileges(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = script("main", &image, "grep NoNewPrivs /proc/self/status | cut -f 2");
    assert_eq!(printed(world, &config).await, "0");
    config.security().no_new_privs = true;
    assert_eq!(printed(world, &config).await, "1");
}

async fn masked_and_read_only_paths(world: &mut World) {
    let image = world.image("busybox").await;
    let line = "cat /proc/keys | wc -c; ls /home | wc -l; echo 1 2>/dev/null > /proc/sys/kernel/domainname || \
                echo refused; touch /www/x 2>/dev/null || echo refused";
    let mut config = script("main", &image, line);
    config.security().masked_paths = vec!["/proc/keys".into(), "/home".into(), "/no/such/path".into()];
    config.security().readonly_paths = vec!["/proc/sys".into(), "/www".into()];
    assert_eq!(printed(world, &config).await, "0\n0\nrefused\nrefused");
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

async fn seccomp_modes(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = script("main", &image, "grep Seccomp: /proc/self/status | cut -f 2");
    config.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(printed(world, &config).await, "2");
    config.security().seccomp = profile(ProfileType::Unconfined, "");
    assert_eq!(printed(world, &config).await, "0");
    // The default profile lets ordinary programs work and refuses what only administrators need.
    let line = "unshare -U true 2>/dev/null || echo refused; echo a | sort; date >/dev/null && echo ok";
    let mut config = script("main", &image, line);
    config.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    assert_eq!(printed(world, &config).await, "refused\na\nok");
}

async fn seccomp_profile_from_a_file(world: &mut World) {
    let image = world.image("busybox").await;
    let path = world.run.join("profile.json");
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
    });
    std::fs::write(&path, json.to_string()).unwrap();
    let mut config =
        script("main", &image, "mkdir /tmp/x 2>/dev/null || echo refused; touch /tmp/y && echo ok");
    config.security().seccomp = profile(ProfileType::Localhost, path.to_str().unwrap());
    assert_eq!(printed(world, &config).await, "refused\nok");

    config.security().seccomp = profile(ProfileType::Localhost, "/no/such/profile.json");
    let pod = world.pod("missing");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let error = match world.create(&pod_id, &pod, &config).await {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("/no/such/profile.json"), "{error:?}");
}

async fn pod_sysctls(world: &mut World) {
    let image = world.image("busybox").await;
    let mut pod = world.pod("sysctl");
    let sysctls = &mut pod.linux.as_mut().unwrap().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let line = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let (output, _) = world.output_of(&pod, &script("main", &image, line)).await;
    assert_eq!(output, "77\n1\n");
}

/// CVE-2019-5736: by `/proc/PID/exe` of a process of the runtime's a container has the program on the host. The container is
/// given all that it could wish for: root, all capabilities, the host's processes before it.
async fn the_runtimes_program_can_not_be_changed(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let image = world.image("busybox").await;
    let program = std::fs::canonicalize(binaries().join("berth-shim")).unwrap();
    let before = std::fs::metadata(&program).unwrap();
    let attack = async |pod_id: &str, pod: &PodSandboxConfig, mode: NamespaceMode, pid: Option<u32>| {
        let mut config = script("main", &image, "exec sleep 100000");
        config.security().privileged = true;
        config.security().namespace_options.as_mut().unwrap().pid = mode.into();
        let id = world.launch(pod_id, pod, &config).await.unwrap();
        // Its own shim, unless another process is meant.
        let pid = pid.unwrap_or_else(|| pids_of("berth-shim", &world.run)[0]);
        let exe = format!("/proc/{pid}/exe");
        let name = world.sh(&id, &format!("tr '\\0' ' ' < /proc/{pid}/cmdline")).await;
        assert!(name.contains("berth-shim"), "{name}");
        for (change, how) in [
            ("mode", format!("chmod 4777 {exe}")),
            ("owner", format!("chown 1 {exe}")),
            ("time", format!("touch -c {exe}")),
            ("mount", format!("mount -o remount,bind,rw {exe}")),
            ("content", format!("echo broken >> {exe}")),
            ("content by a descriptor", format!("exec 9<{exe}; echo broken >> /proc/self/fd/9")),
        ] {
            let line = format!("({how}) 2>&1 || echo refused");
            let said = world.sh(&id, &line).await;
            assert!(said.ends_with("refused"), "{change}: {said}");
            if matches!(change, "mode" | "owner" | "time") {
                assert!(said.contains("Read-only file system"), "{change}: {said}");
            }
        }
        world.stop_container(&id, 0).await.unwrap();
    };
    let mut pod = world.pod("host-pid");
    pod.security().namespace_options.as_mut().unwrap().pid = NamespaceMode::Node.into();
    pod.security().privileged = true;
    let pod_id = world.run_pod(&pod).await.unwrap();
    attack(&pod_id, &pod, NamespaceMode::Node, None).await;
    world.remove_pod(&pod_id).await.unwrap();
    // The process of a pod's shared PID namespace is in sight for as long as the pod lives.
    let mut pod = world.pod("shared-pid");
    pod.security().namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    pod.security().privileged = true;
    let pod_id = world.run_pod(&pod).await.unwrap();
    attack(&pod_id, &pod, NamespaceMode::Pod, Some(1)).await;
    let after = std::fs::metadata(&program).unwrap();
    assert_eq!((after.mode(), after.uid(), after.len()), (before.mode(), before.uid(), before.len()));
}
