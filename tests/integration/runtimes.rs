//! RuntimeClass handlers: the same life of a pod by OCI runtime binaries.

use k8s_cri::v1::{StatusRequest, VersionRequest};
use libtest_mimic::Trial;
use tonic::Code;

use crate::support::World;
use crate::support::container;
use crate::support::runtime::find;
use crate::support::spec::{ContainerOptions, script};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![by_runc, by_crun, what_the_daemon_says_of_itself]
}

async fn by_runc(world: &mut World) {
    life_with_handler(world, "runc").await;
}

async fn by_crun(world: &mut World) {
    life_with_handler(world, "crun").await;
}

async fn life_with_handler(world: &mut World, handler: &str) {
    let pod = world.pod("handler");
    let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
    assert_eq!(world.pod_status(&pod_id).await.unwrap().runtime_handler, handler);
    let image = world.image("users").await;
    let mut config = script("main", &image, "echo out; echo err >&2; id -u; exit 3");
    config.security().readonly_rootfs = true;
    config.resources().memory_limit_in_bytes = 64 << 20;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.wait_exit(&id).await.exit_code, 3);
    let mut lines: Vec<String> =
        world.log(&pod, &config).iter().map(|line| format!("{} {}", line.stream, line.text)).collect();
    lines.sort();
    assert_eq!(lines, ["stderr err", "stdout 1000", "stdout out"]);

    let sleeper = world.launch(&pod_id, &pod, &container("s", &image, &["sleep", "10000"])).await.unwrap();
    assert_eq!(world.sh(&sleeper, "echo $((6 * 7))").await, "42");
    world.crash_and_restart().await;
    assert_eq!(world.sh(&sleeper, "echo again").await, "again");
    world.stop_container(&sleeper, 0).await.unwrap();
    assert_eq!(world.status(&sleeper).await.unwrap().exit_code, 137);
    let missing = container("missing", &image, &["no-such-command"]);
    let error = match world.create(&pod_id, &pod, &missing).await {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("no-such-command"), "{error:?}");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
}

async fn what_the_daemon_says_of_itself(world: &mut World) {
    let version = world.runtime().version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    let status = world.runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == wanted).unwrap();
        assert!(condition.status, "{condition:?}");
    }
    if world.is_berth() {
        assert_eq!(version.runtime_name, "berth");
        let mut names: Vec<&str> =
            status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["", "berth", "crun", "runc"]);
        // What runc itself says decides, not its name; crun 1.8 says nothing.
        let features = std::process::Command::new(find("runc")).arg("features").output().unwrap();
        let features: serde_json::Value = serde_json::from_slice(&features.stdout).unwrap_or_default();
        let knows =
            features["mountOptions"].as_array().is_some_and(|list| list.iter().any(|one| one == "rro"));
        let of = |name: &str| {
            let handler = status.runtime_handlers.iter().find(|handler| handler.name == name).unwrap();
            handler.features.unwrap()
        };
        assert_eq!(of("runc").recursive_read_only_mounts, knows);
        // Mapping mounts is our shim's work: the runtime only joins the namespace. The kernel has the last word.
        let joins = features["linux"]["namespaces"]
            .as_array()
            .is_some_and(|list| list.iter().any(|one| one == "user"));
        assert_eq!(of("runc").user_namespaces, joins && of("berth").user_namespaces);
        assert!(!of("crun").user_namespaces);
        let config =
            world.runtime().runtime_config(k8s_cri::v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
        let driver = config.linux.unwrap().cgroup_driver;
        assert_eq!(driver, i32::from(k8s_cri::v1::CgroupDriver::Cgroupfs));
    }
}
