//! What others hang in, and what ends behind the daemon's back: the pod is seen for what it is, and can be ended.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerState, CreateContainerRequest, Mount, NamespaceMode, PodSandboxState};
use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::support::spec::{ContainerOptions, PodOptions, script};
use crate::support::world::assert_code;
use crate::support::{World, container, patience, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        a_shim_that_does_not_answer,
        a_container_that_is_never_made,
        the_first_process_of_a_pod_ends,
        a_pod_without_its_namespaces,
    ]
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = within(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn is_ready(world: &World, pod: &str) -> bool {
    world.pod_status(pod).await.unwrap().state == i32::from(PodSandboxState::SandboxReady)
}

/// The process of that command line and those words.
fn process(words: &[&str]) -> Option<Pid> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let said: Vec<_> = line.split('\0').collect();
        words.iter().all(|word| said.contains(word)).then(|| Pid::from_raw(pid))
    })
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A disk that hangs keeps a shim from answering. The daemon that is started meanwhile serves, and the container runs on.
async fn a_shim_that_does_not_answer(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (_, silent) = world.pod_with_sleeper("silent").await;
    let (_, other) = world.pod_with_sleeper("other").await;
    let stopped = Stopped::new(process(&["serve", "--id", &silent]).expect("its shim"));
    world.crash_and_restart().await;
    assert_eq!(world.sh(&other, "echo served").await, "served");
    let running = i32::from(ContainerState::ContainerRunning);
    assert_eq!(world.status(&silent).await.unwrap().state, running);
    drop(stopped);
    assert_eq!(world.sh(&silent, "echo alive").await, "alive");
    world.stop_container(&silent, 0).await.unwrap();
    assert_eq!(world.wait_exit(&silent).await.exit_code, 137);
}

/// A file system whose server never answers: whoever looks at it hangs until this is dropped.
struct Dead {
    path: PathBuf,
    server: Option<std::fs::File>,
}

impl Dead {
    fn new(path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        let server = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("dead"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { path: path.to_owned(), server: Some(server) }
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        // Who hangs in it gets an error.
        drop(self.server.take());
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A volume on a network file system whose server is gone: the container is never made, the pod ends all the same.
async fn a_container_that_is_never_made(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let image = world.image("busybox").await;
    let pod = world.pod("never");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let beside = world.launch(&pod_id, &pod, &container("beside", &image, &["sleep", "1000"])).await.unwrap();
    let dead = Dead::new(&world.run.join("dead"));
    let mut config = container("main", &image, &["sleep", "1000"]);
    config.mounts = vec![Mount {
        container_path: "/volume".into(),
        // Below it: the mount point itself is known without the server.
        host_path: dead.path.join("volume").to_str().unwrap().into(),
        ..Default::default()
    }];
    let creating = {
        let (mut client, request) = (
            world.own_runtime(),
            CreateContainerRequest {
                pod_sandbox_id: pod_id.clone(),
                config: Some(config),
                sandbox_config: Some(pod.clone()),
            },
        );
        tokio::spawn(async move { client.create_container(request).await })
    };
    let records = world.daemon.root.join("records/containers");
    until("nobody makes it", async || std::fs::read_dir(&records).unwrap().count() == 2).await;
    let stopped = tokio::time::timeout(patience(30), world.stop_pod(&pod_id)).await;
    stopped.expect("the pod can't be stopped").unwrap();
    assert!(!is_ready(world, &pod_id).await);
    assert_eq!(world.wait_exit(&beside).await.exit_code, 137);
    // What may still come of it has to be somebody's.
    let said = assert_code(world.remove_pod(&pod_id).await, Code::DeadlineExceeded);
    assert!(said.contains("main") && said.contains("being made"), "{said}");
    assert!(!creating.is_finished());
    drop(dead);
    creating.await.unwrap().unwrap_err();
    until("it can't be removed", async || world.remove_pod(&pod_id).await.is_ok()).await;
}

/// `kill 1` in a pod whose containers share their processes ends all of them for good: it is not ready any more, so that
/// another is made in its place.
async fn the_first_process_of_a_pod_ends(world: &mut World) {
    if !world.is_berth() {
        return; // a pause image of ours does not heed SIGTERM
    }
    let image = world.image("busybox").await;
    for daemon in ["there", "away"] {
        let mut pod = world.pod(&format!("first-{daemon}"));
        pod.security().namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
        let pod_id = world.run_pod(&pod).await.unwrap();
        let mut config =
            script("main", &image, "until [ -e /v/go ]; do sleep 0.05; done; kill 1; sleep 1000");
        config.security().namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
        let volume = world.run.join(format!("volume-{daemon}"));
        std::fs::create_dir(&volume).unwrap();
        config.mounts = vec![Mount {
            container_path: "/v".into(),
            host_path: volume.to_str().unwrap().into(),
            ..Default::default()
        }];
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        assert!(is_ready(world, &pod_id).await);
        let lives = || in_cgroup(&id);
        assert!(lives());
        if daemon == "away" {
            world.daemon.kill();
        }
        std::fs::write(volume.join("go"), "").unwrap();
        until("its processes go on", async || !lives()).await;
        if daemon == "away" {
            world.daemon.spawn();
            world.ready().await;
        }
        until("the pod is ready", async || !is_ready(world, &pod_id).await).await;
        assert_eq!(world.wait_exit(&id).await.exit_code, 137);
        let mut next = config.clone();
        next.metadata.as_mut().unwrap().attempt = 1;
        assert_code(world.create(&pod_id, &pod, &next).await, Code::FailedPrecondition);
        world.stop_pod(&pod_id).await.unwrap();
        // As the kubelet makes the next one.
        pod.metadata.as_mut().unwrap().attempt = 1;
        let again = world.run_pod(&pod).await.unwrap();
        std::fs::remove_file(volume.join("go")).unwrap();
        world.launch(&again, &pod, &config).await.unwrap();
        world.remove_pod(&again).await.unwrap();
        world.remove_pod(&pod_id).await.unwrap();
    }
}

/// Whether a process is in the container's cgroup.
fn in_cgroup(container: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut groups = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("cgroup")).ok());
    groups.any(|groups| groups.contains(container))
}

/// Somebody took the pins of its namespaces away: the pod is not ready, and its stop ends what still runs.
async fn a_pod_without_its_namespaces(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (pod_id, id) = world.pod_with_sleeper("bare").await;
    world.daemon.kill();
    umount2(&world.daemon.state.join("pods").join(&pod_id).join("ns/ipc"), MntFlags::MNT_DETACH).unwrap();
    world.daemon.spawn();
    world.ready().await;
    assert!(!is_ready(world, &pod_id).await);
    world.stop_pod(&pod_id).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerExited));
}
