//! Limits: what the cgroup says, and what happens at the limit.

use std::path::Path;

use libtest_mimic::Trial;

use crate::support::leaks::hierarchies;
use crate::support::runtime::Options;
use crate::support::spec::{ContainerOptions, script};
use crate::support::{World, container};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let mut list = trials![
        limits_are_in_the_cgroup,
        out_of_memory,
        too_little_memory_to_start,
        oom_score,
        status_shows_resources
    ];
    let runtimes = "[runtimes.writable]\ntype = \"berth\"\ncgroup_writable = true\n".to_owned();
    list.extend(trials![options = Options { runtimes, ..Options::default() }; cgroups_of_its_own]);
    list
}

/// A handler's containers may make cgroups below their own, with version 2.
async fn cgroups_of_its_own(world: &mut World) {
    // With version 1 the hierarchies lie below.
    const LINE: &str =
        "cd /sys/fs/cgroup; [ -e cgroup.controllers ] || cd memory; mkdir below && rmdir below && echo made";
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let image = world.image("busybox").await;
    for (handler, writable) in [("berth", false), ("writable", unified)] {
        let pod = world.pod(handler);
        let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
        let config = script("main", &image, LINE);
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        world.wait_exit(&id).await;
        let said = world.log_text(&pod, &config);
        assert_eq!(said.trim_end() == "made", writable, "{handler}: {said}");
    }
}

/// The content of the first of `files` in the container's cgroup (version 1 or 2).
pub(crate) fn cgroup_file(world: &World, id: &str, files: &[&str]) -> String {
    for hierarchy in hierarchies() {
        let mut directories = vec![hierarchy.join(world.cgroup.trim_start_matches('/'))];
        while let Some(directory) = directories.pop() {
            if directory.to_string_lossy().contains(id) {
                for file in files {
                    if let Ok(text) = std::fs::read_to_string(directory.join(file)) {
                        return text.trim().to_owned();
                    }
                }
            }
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(entry.path());
                }
            }
        }
    }
    panic!("none of {files:?} in a cgroup of {id}");
}

async fn limits_are_in_the_cgroup(world: &mut World) {
    let pod = world.pod("limits");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    let resources = config.resources();
    resources.memory_limit_in_bytes = 64 << 20;
    resources.cpu_period = 100_000;
    resources.cpu_quota = 50_000;
    resources.cpu_shares = 512;
    resources.cpuset_cpus = "0".to_owned();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let file = |files: &[&str]| cgroup_file(world, &id, files);
    assert_eq!(file(&["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
    assert!(matches!(file(&["cpu.max", "cpu.cfs_quota_us"]).as_str(), "50000 100000" | "50000"));
    assert!(matches!(file(&["cpu.weight", "cpu.shares"]).as_str(), "20" | "59" | "512"));
    assert_eq!(file(&["cpuset.cpus"]), "0");
}

async fn too_little_memory_to_start(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("tiny");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["sleep", "1000"]);
    config.resources().memory_limit_in_bytes = 1000;
    let error = match world.create(&pod_id, &pod, &config).await {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("memory"), "{error:?}");
    if world.is_berth() {
        assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error:?}");
    }
}

async fn out_of_memory(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("oom");
    let mut config = script("main", &image, "tail /dev/zero");
    config.command = vec!["tail".into(), "/dev/zero".into()];
    config.resources().memory_limit_in_bytes = 16 << 20;
    let (_, status) = world.output_of(&pod, &config).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137), "{status:?}");
}

async fn oom_score(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = script("main", &image, "cat /proc/self/oom_score_adj");
    config.resources().oom_score_adj = 777;
    let (output, _) = world.output_of(&world.pod("score"), &config).await;
    assert_eq!(output, "777\n");
    // Below our own needs CAP_SYS_RESOURCE; where that is missing the value is capped, the pod runs.
    config.resources().oom_score_adj = -998;
    let (output, status) = world.output_of(&world.pod("score"), &config).await;
    assert_eq!(status.exit_code, 0);
    assert!(output.trim().parse::<i32>().unwrap() <= 0, "{output}");
}

async fn status_shows_resources(world: &mut World) {
    if !world.is_berth() {
        return; // newer than containerd 1.6
    }
    let pod = world.pod("status");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.resources().memory_limit_in_bytes = 32 << 20;
    config.resources().cpu_shares = 256;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let resources = world.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (32 << 20, 256));
}
