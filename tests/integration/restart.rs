//! The daemon ends, in peace or by SIGKILL, and comes back.

use std::time::Duration;

use k8s_cri::v1::{ContainerState, PodSandboxState};
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::spec::script;
use crate::support::{container, runtime};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        containers_do_not_notice,
        an_exit_while_nobody_watched,
        killed_while_a_pod_starts,
        killed_while_a_container_starts,
        killed_while_a_pod_stops,
        a_second_daemon_is_refused,
        a_lost_container_process,
    ]
}

async fn containers_do_not_notice(world: &mut World) {
    let (pod_id, id) = world.pod_with_sleeper("calm").await;
    let (pod_before, before) = (world.pod_status(&pod_id).await.unwrap(), world.status(&id).await.unwrap());
    for crash in [false, true] {
        if crash {
            world.crash_and_restart().await;
        } else {
            world.restart().await;
        }
        assert_eq!(world.pod_status(&pod_id).await.unwrap(), pod_before);
        assert_eq!(world.status(&id).await.unwrap(), before);
        assert_eq!(world.sh(&id, "echo alive").await, "alive");
    }
    world.stop_container(&id, 0).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().exit_code, 137);
}

async fn an_exit_while_nobody_watched(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("alone");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = script("main", &image, "sleep 1; echo done; exit 42");
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    world.daemon.kill();
    tokio::time::sleep(Duration::from_secs(6)).await;
    world.daemon.spawn();
    world.ready().await;
    let status = world.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    if world.is_berth() {
        assert_eq!(world.log_text(&pod, &config), "done\n");
        let lasted = status.finished_at - status.started_at;
        // Nearer to the second that it slept than to the moment when somebody looked again.
        assert!((900_000_000..5_000_000_000).contains(&lasted), "the time of the exit: {lasted} ns");
    }
}

/// Moments, in milliseconds after the call was sent: dense where the work is done.
const MOMENTS: [u64; 12] = [0, 1, 2, 4, 6, 9, 13, 18, 25, 35, 60, 120];

/// Kills the daemon so many milliseconds after `call` was sent; the call is not cancelled before that.
/// Returns its answer, if it came in time.
pub(crate) async fn killed_during<T>(world: &World, moment: u64, call: impl Future<Output = T>) -> Option<T> {
    let mut call = std::pin::pin!(call);
    let answer = tokio::time::timeout(Duration::from_millis(moment), &mut call).await.ok();
    world.daemon.signal(nix::sys::signal::Signal::SIGKILL);
    answer
}

async fn killed_while_a_pod_starts(world: &mut World) {
    if !world.is_berth() {
        return; // containerd leaks here
    }
    for moment in MOMENTS {
        let pod = world.pod(&format!("killed-{moment}"));
        let answer = killed_during(world, moment, world.run_pod(&pod)).await;
        world.crash_and_restart().await;
        for pod in world.list_pods().await.unwrap() {
            world.remember(&pod.id);
            let status = world.pod_status(&pod.id).await.unwrap();
            if status.state == i32::from(PodSandboxState::SandboxReady) {
                assert!(status.network.is_some_and(|network| !network.ip.is_empty()), "whole");
            }
        }
        if let Some(Ok(id)) = answer {
            world.pod_status(&id).await.expect("a pod that was confirmed is there");
        }
        // The kubelet's retry: the same metadata, or it finds the pod in the list.
        match world.run_pod(&pod).await {
            Ok(_) => {}
            Err(status) => assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status:?}"),
        }
        for pod in world.list_pods().await.unwrap() {
            world.remove_pod(&pod.id).await.unwrap();
        }
        world.no_leaks();
    }
}

async fn killed_while_a_container_starts(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let image = world.image("busybox").await;
    for moment in MOMENTS {
        let pod = world.pod(&format!("killed-{moment}"));
        let pod_id = world.run_pod(&pod).await.unwrap();
        let config = container("main", &image, &["sleep", "1000"]);
        killed_during(world, moment, world.launch(&pod_id, &pod, &config)).await;
        world.crash_and_restart().await;
        for container in world.list_containers().await.unwrap() {
            world.remember(&container.id);
            let status = world.status(&container.id).await.unwrap();
            match ContainerState::try_from(status.state).unwrap() {
                ContainerState::ContainerRunning => {
                    assert_eq!(world.sh(&container.id, "echo whole").await, "whole");
                }
                ContainerState::ContainerCreated => {
                    world.start_container(&container.id).await.unwrap();
                }
                ContainerState::ContainerExited => {}
                ContainerState::ContainerUnknown => panic!("unknown state: {status:?}"),
            }
            world.remove_container(&container.id).await.unwrap();
        }
        // The same container again.
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        assert_eq!(world.sh(&id, "echo again").await, "again");
        world.remove_pod(&pod_id).await.unwrap();
        world.no_leaks();
    }
}

async fn killed_while_a_pod_stops(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    for moment in [0, 2, 5, 10, 20, 40] {
        let (pod_id, _) = world.pod_with_sleeper(&format!("stop-{moment}")).await;
        killed_during(world, moment, world.remove_pod(&pod_id)).await;
        world.crash_and_restart().await;
        world.stop_pod(&pod_id).await.unwrap();
        world.remove_pod(&pod_id).await.unwrap();
        world.no_leaks();
    }
}

async fn a_second_daemon_is_refused(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (_, id) = world.pod_with_sleeper("first").await;
    let config = &world.daemon.config;
    let output = world
        .netns
        .run(|| {
            std::process::Command::new(runtime::binaries().join("berthd"))
                .arg("--config")
                .arg(config)
                .output()
        })
        .unwrap();
    assert!(!output.status.success());
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("another berthd") && said.contains("pid"), "{said}");
    assert_eq!(world.sh(&id, "echo first").await, "first", "the first still serves");
}

/// The container's process dies with its shim while no daemon is there: nothing knows its exit status.
async fn a_lost_container_process(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (pod_id, id) = world.pod_with_sleeper("lost").await;
    world.daemon.kill();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if pid != 1 && (command.contains(&id) || command.starts_with("sleep 100000")) {
            let in_world = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if command.contains(&id) || in_world.contains(&world.cgroup) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                killed += 1;
            }
        }
    }
    assert!(killed >= 1);
    world.daemon.spawn();
    world.ready().await;
    let status = world.wait_exit(&id).await;
    assert_ne!(status.exit_code, 0);
    world.stop_pod(&pod_id).await.unwrap();
}
