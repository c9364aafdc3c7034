//! Handlers that are another shim of containerd's protocol: Debian's `containerd-shim-runc-v2`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerState, ReopenContainerLogRequest, UpdateContainerResourcesRequest};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::runtime::{Options, binaries, find};
use crate::support::spec::{ContainerOptions, script};
use crate::support::{World, container, within};
use crate::trials;

const PROGRAM: &str = "containerd-shim-runc-v2";

pub(crate) fn trials() -> Vec<Trial> {
    let program = find(PROGRAM);
    if !Path::new(&program).exists() {
        eprintln!("shims: skipped, there is no {PROGRAM} (Debian's package containerd)");
        return Vec::new();
    }
    let runtimes = format!(
        "[runtimes.shim]\ntype = \"shim\"\npath = \"{program}\"\n\
         [runtimes.boxed]\ntype = \"shim\"\npath = \"{program}\"\nsandbox = \"container\"\n\
         [runtimes.broken]\ntype = \"shim\"\npath = \"{}\"\nsandbox = \"none\"\n",
        find("false")
    ) + &format!(
        "[runtimes.own]\ntype = \"shim\"\npath = \"{}\"\nsandbox = \"none\"\n",
        binaries().join("berth-shim").display()
    );
    trials![options = Options { runtimes: runtimes.clone(), ..Options::default() };
        a_whole_life,
        containers_of_a_pod_share_a_shim,
        the_daemon_may_die,
        the_other_shim_dies,
        our_shim_dies,
        both_shims_and_the_daemon_die,
        limits_and_memory,
        a_sandbox_container,
        a_program_that_is_no_shim,
        one_that_speaks_version_three,
    ]
}

/// Processes of this test's PID namespace whose program has the name.
fn processes(name: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = command.split(|&byte| byte == 0).next().unwrap_or_default();
        PathBuf::from(String::from_utf8_lossy(program).into_owned())
            .file_name()
            .is_some_and(|file| file == name)
    })
    .collect()
}

/// Processes of that name that serve a container of this world.
fn serving(world: &World, name: &str, id: &str) -> Vec<i32> {
    let bundle = world.daemon.state.join("containers").join(id);
    let of_bundle = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(bundle.to_str().unwrap())
            || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&bundle))
    };
    processes(name).into_iter().filter(of_bundle).collect()
}

/// Besides what the harness checks after every test: nothing in the directories that the other shim uses.
fn nothing_of_the_other_shim(world: &World, ids: &[&str]) {
    let deadline = within(10);
    loop {
        let mut left: Vec<String> = Vec::new();
        for id in ids {
            let state = Path::new("/run/containerd/runc/berth").join(id);
            if state.exists() {
                left.push(state.display().to_string());
            }
            left.extend(serving(world, PROGRAM, id).iter().map(|pid| format!("process {pid}")));
        }
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn a_whole_life(world: &mut World) {
    let pod = world.pod("life");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
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

    let endless = script("s", &image, "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done");
    let sleeper = world.launch(&pod_id, &pod, &endless).await.unwrap();
    assert_eq!(world.sh(&sleeper, "echo $((6 * 7))").await, "42");
    let answer = world.exec_sync(&sleeper, &["sh", "-c", "echo e >&2; exit 7"], 10).await.unwrap();
    assert_eq!((answer.exit_code, answer.stderr.as_slice()), (7, &b"e\n"[..]));
    let error = world.exec_sync(&sleeper, &["sleep", "1000"], 1).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error:?}");

    // Rotation, as the kubelet does it.
    let path = Path::new(&pod.log_directory).join(&endless.log_path);
    std::fs::rename(&path, path.with_extension("1")).unwrap();
    let request = ReopenContainerLogRequest { container_id: sleeper.clone() };
    world.runtime().reopen_container_log(request).await.unwrap();
    let deadline = within(10);
    while std::fs::read(&path).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline, "nothing is written to the new log");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.stop_container(&sleeper, 0).await.unwrap();
    assert_eq!(world.status(&sleeper).await.unwrap().exit_code, 137);

    let missing = container("missing", &image, &["no-such-command"]);
    let error = match world.create(&pod_id, &pod, &missing).await {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("no-such-command"), "{error:?}");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error:?}");
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    nothing_of_the_other_shim(world, &[&id, &sleeper]);
}

async fn containers_of_a_pod_share_a_shim(world: &mut World) {
    let pod = world.pod("shared");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    let names = ["a", "b", "c"];
    let configs = names.map(|name| container(name, &image, &["sleep", "10000"]));
    // At once: three shims are started, and two find that another has begun to listen.
    let launch = |config| world.launch(&pod_id, &pod, config);
    let (a, b, c) = tokio::join!(launch(&configs[0]), launch(&configs[1]), launch(&configs[2]));
    let ids = [a.unwrap(), b.unwrap(), c.unwrap()];
    let shims: usize = ids.iter().map(|id| serving(world, PROGRAM, id).len()).sum();
    assert_eq!(shims, 1);
    // The shim outlives the container that it was started for.
    for id in &ids[..2] {
        world.stop_container(id, 0).await.unwrap();
        world.remove_container(id).await.unwrap();
    }
    assert_eq!(world.sh(&ids[2], "echo there").await, "there");
    let late = world.launch(&pod_id, &pod, &container("d", &image, &["sleep", "10000"])).await.unwrap();
    assert_eq!(world.sh(&late, "hostname").await, world.sh(&ids[2], "hostname").await);
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    nothing_of_the_other_shim(world, &[&ids[0], &ids[1], &ids[2], &late]);
}

async fn the_daemon_may_die(world: &mut World) {
    let pod = world.pod("death");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    let counting = script("main", &image, "for n in $(seq 1 60); do echo $n; sleep 0.05; done; exit 42");
    let id = world.launch(&pod_id, &pod, &counting).await.unwrap();
    let other = world.launch(&pod_id, &pod, &container("o", &image, &["sleep", "10000"])).await.unwrap();
    world.crash_and_restart().await;
    assert_eq!(world.sh(&other, "echo again").await, "again");
    world.daemon.kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.daemon.spawn();
    world.ready().await;
    let status = world.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    let wanted: String = (1..=60).map(|number| format!("{number}\n")).collect();
    assert_eq!(world.log_text(&pod, &counting), wanted);
    assert_eq!(world.status(&other).await.unwrap().state, i32::from(ContainerState::ContainerRunning));
}

async fn the_other_shim_dies(world: &mut World) {
    let pod = world.pod("dies");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &container("a", &image, &["sleep", "98765"])).await.unwrap();
    let [shim] = serving(world, PROGRAM, &id)[..] else { panic!("one shim") };
    let there = || {
        processes("sleep").iter().any(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.ends_with(b"98765\0"))
        })
    };
    assert!(there());
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    let status = world.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let deadline = within(10);
    while there() {
        assert!(Instant::now() < deadline, "the container outlives its shim");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The pod goes on with a new one.
    let next = world.launch(&pod_id, &pod, &container("b", &image, &["sleep", "10000"])).await.unwrap();
    assert_eq!(world.sh(&next, "echo new").await, "new");
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    nothing_of_the_other_shim(world, &[&id, &next]);
}

async fn our_shim_dies(world: &mut World) {
    let pod = world.pod("ours");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &container("a", &image, &["sleep", "10000"])).await.unwrap();
    for pid in serving(world, "berth-shim", &id) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let status = world.wait_exit(&id).await;
    assert_eq!(status.exit_code, 255, "{status:?}");
    world.remove_container(&id).await.unwrap();
    nothing_of_the_other_shim(world, &[&id]);
}

async fn both_shims_and_the_daemon_die(world: &mut World) {
    let pod = world.pod("all");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &container("a", &image, &["sleep", "10000"])).await.unwrap();
    world.daemon.kill();
    for pid in serving(world, PROGRAM, &id).into_iter().chain(serving(world, "berth-shim", &id)) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    world.daemon.spawn();
    world.ready().await;
    assert_ne!(world.wait_exit(&id).await.exit_code, 0);
    world.remove_container(&id).await.unwrap();
    nothing_of_the_other_shim(world, &[&id]);
}

async fn limits_and_memory(world: &mut World) {
    let pod = world.pod("limits");
    let pod_id = world.run_pod_with(&pod, "shim").await.unwrap();
    let image = world.image("busybox").await;
    // The shell goes on when the kernel has killed what it started.
    let mut greedy = script("greedy", &image, "head -c 200m /dev/zero | tail -n 1 | wc -c; exit 9");
    greedy.resources().memory_limit_in_bytes = 32 << 20;
    let id = world.launch(&pod_id, &pod, &greedy).await.unwrap();
    assert_eq!(world.wait_exit(&id).await.reason, "OOMKilled");

    let id = world.launch(&pod_id, &pod, &container("u", &image, &["sleep", "10000"])).await.unwrap();
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(k8s_cri::v1::LinuxContainerResources {
            memory_limit_in_bytes: 48 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    world.runtime().update_container_resources(request).await.unwrap();
    let resources = world.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 48 << 20);
}

async fn a_sandbox_container(world: &mut World) {
    let pod = world.pod("boxed");
    let pod_id = world.run_pod_with(&pod, "boxed").await.unwrap();
    let deadline = within(10);
    // The program's name shows when its runtime has executed it.
    while processes("pause").len() != 1 {
        assert!(Instant::now() < deadline, "{:?}", processes("pause"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &container("a", &image, &["sleep", "10000"])).await.unwrap();
    // It is no container of the pod.
    assert_eq!(world.list_containers().await.unwrap().len(), 1);
    assert_eq!(serving(world, PROGRAM, &pod_id).len(), 1);
    assert_eq!(serving(world, PROGRAM, &id).len(), 0);
    assert_eq!(world.sh(&id, "hostname").await, world.pod("boxed").hostname);
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, "echo again").await, "again");
    world.stop_pod(&pod_id).await.unwrap();
    assert!(processes("pause").is_empty());
    world.remove_pod(&pod_id).await.unwrap();
    nothing_of_the_other_shim(world, &[&id, &pod_id]);

    // Without its sandbox container a pod is not ready after a restart.
    let pod_id = world.run_pod_with(&world.pod("again"), "boxed").await.unwrap();
    let deadline = within(10);
    while processes("pause").is_empty() {
        assert!(Instant::now() < deadline, "no sandbox container");
        std::thread::sleep(Duration::from_millis(10));
    }
    world.daemon.kill();
    kill(Pid::from_raw(processes("pause")[0]), Signal::SIGKILL).unwrap();
    world.daemon.spawn();
    world.ready().await;
    let status = world.pod_status(&pod_id).await.unwrap();
    assert_eq!(status.state, i32::from(k8s_cri::v1::PodSandboxState::SandboxNotready));
}

async fn a_program_that_is_no_shim(world: &mut World) {
    let pod = world.pod("none");
    let pod_id = world.run_pod_with(&pod, "broken").await.unwrap();
    let image = world.image("busybox").await;
    let made = world.create(&pod_id, &pod, &container("a", &image, &["sleep", "10000"])).await;
    let error = match made {
        Ok(id) => world.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("false start: exit status: 1"), "{error:?}");
}

/// Ours behind ours: it answers in JSON, speaks version 3, and serves one container alone.
async fn one_that_speaks_version_three(world: &mut World) {
    let pod = world.pod("own");
    let pod_id = world.run_pod_with(&pod, "own").await.unwrap();
    let image = world.image("busybox").await;
    let config = script("main", &image, "echo out; exit 5");
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.wait_exit(&id).await.exit_code, 5);
    assert_eq!(world.log_text(&pod, &config), "out\n");
    let id = world.launch(&pod_id, &pod, &container("s", &image, &["sleep", "10000"])).await.unwrap();
    let said = std::fs::read(world.daemon.state.join("containers").join(&id).join("bootstrap.json")).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["version"], 3);
    assert_eq!(world.sh(&id, "echo in").await, "in");
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, "echo again").await, "again");
    world.stop_container(&id, 0).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().exit_code, 137);
}
