//! ExecSync.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tonic::Code;

use crate::support::World;
use crate::support::container;
use crate::support::spec::ContainerOptions;
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        output_and_exit_code,
        runs_as_the_container_does,
        time_out,
        large_output,
        many_at_once,
        children_do_not_hold_it,
        children_live_on,
        a_time_out_kills_all,
        the_daemon_crashes_midway,
        needs_a_running_container,
        unknown_command,
    ]
}

async fn output_and_exit_code(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("exec").await;
    let answer = world.exec_sync(&id, &["sh", "-c", "echo out; echo err >&2; exit 9"], 10).await.unwrap();
    assert_eq!(answer.stdout, b"out\n");
    assert_eq!(answer.stderr, b"err\n");
    assert_eq!(answer.exit_code, 9);
    let answer = world.exec_sync(&id, &["sh", "-c", "kill -9 $$"], 0).await.unwrap();
    assert_eq!(answer.exit_code, 137);
}

async fn runs_as_the_container_does(world: &mut World) {
    let pod = world.pod("same");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("users").await;
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.env("MARK", "here");
    config.working_dir = "/www".to_owned();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "id -u; echo $MARK; pwd; hostname").await, "1000\nhere\n/www\nsame");
    // In the container's cgroups, or in one of its own below them.
    let own = world.sh(&id, "cat /proc/self/cgroup").await;
    let first = world.sh(&id, "cat /proc/1/cgroup").await;
    for (own, first) in own.lines().zip(first.lines()) {
        assert!(own.starts_with(first), "{own} is not below {first}");
    }
}

async fn time_out(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("slow").await;
    let deadline = crate::support::within(10);
    assert_code(world.exec_sync(&id, &["sleep", "4321"], 1).await, Code::DeadlineExceeded);
    assert!(Instant::now() < deadline, "its time-out came late");
    let deadline = crate::support::within(5);
    while world.sh(&id, "ps -o args | grep -c '[s]leep 4321' || true").await != "0" {
        assert!(Instant::now() < deadline, "what the exec started still runs");
    }
}

async fn large_output(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("large").await;
    let answer =
        world.exec_sync(&id, &["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], 30).await.unwrap();
    assert_eq!(answer.stdout.len(), 3_000_000);
    assert!(answer.stdout.iter().all(|&byte| byte == b'x'));
}

async fn many_at_once(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("many").await;
    let lines: Vec<String> = (0..20).map(|number| format!("echo {number}; exit {number}")).collect();
    let commands: Vec<[&str; 3]> = lines.iter().map(|line| ["sh", "-c", line]).collect();
    let answers =
        futures::future::join_all(commands.iter().map(|command| world.exec_sync(&id, command, 60))).await;
    for (number, answer) in (0..).zip(answers) {
        let answer = answer.unwrap();
        assert_eq!(answer.exit_code, number);
        assert_eq!(String::from_utf8(answer.stdout).unwrap(), format!("{number}\n"));
    }
}

/// A process left in the background keeps the pipes open; the answer must not wait for it.
async fn children_do_not_hold_it(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("child").await;
    let answer = world.exec_sync(&id, &["sh", "-c", "echo first; sleep 1000 & exit 4"], 300).await.unwrap();
    assert_eq!((answer.exit_code, answer.stdout.as_slice()), (4, b"first\n".as_slice()));
}

/// What a command left in the background is the container's from then on, however many commands follow.
async fn children_live_on(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("orphan").await;
    for number in 0..3 {
        let line = format!("sleep {} >/dev/null 2>&1 & echo started", 7000 + number);
        assert_eq!(world.sh(&id, &line).await, "started");
        assert_eq!(world.sh(&id, "echo another").await, "another");
    }
    for number in 0..3 {
        let line = format!("ps -o args | grep -c '^sleep {}'", 7000 + number);
        assert_eq!(world.sh(&id, &line).await, "1");
    }
    // Nor is a cgroup left for each.
    if world.is_berth() {
        let names = exec_cgroups(world);
        let deadline = crate::support::within(5);
        while !exec_cgroups(world).is_empty() {
            assert!(Instant::now() < deadline, "{names:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Directories of execs in the world's cgroups.
fn exec_cgroups(world: &World) -> Vec<String> {
    fn walk(directory: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("berth-exec-") {
                    found.push(name);
                }
                walk(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    for hierarchy in crate::support::leaks::hierarchies() {
        walk(&hierarchy.join(world.cgroup.trim_start_matches('/')), &mut found);
    }
    found
}

async fn a_time_out_kills_all(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("all").await;
    let line = "sleep 7100 & setsid sleep 7101 & (sleep 7102 &) ; trap '' TERM HUP; sleep 7103";
    assert_code(world.exec_sync(&id, &["sh", "-c", line], 1).await, Code::DeadlineExceeded);
    let deadline = crate::support::within(5);
    while world.sh(&id, "ps -o args | grep -c '^[s]leep 71' || true").await != "0" {
        assert!(Instant::now() < deadline, "something that the exec started still runs");
    }
}

/// Whoever asked for a command is gone with the daemon: the next one ends it.
async fn the_daemon_crashes_midway(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (_, id) = world.pod_with_sleeper("crash").await;
    for round in 0..3 {
        let runtime = world.runtime();
        let calls: Vec<_> = (0..4)
            .map(|number| {
                let request = k8s_cri::v1::ExecSyncRequest {
                    container_id: id.clone(),
                    cmd: ["sh", "-c", &format!("sleep 72{number}0 & sleep 72{number}1")]
                        .map(str::to_owned)
                        .to_vec(),
                    timeout: 0,
                };
                let mut runtime = runtime.clone();
                tokio::spawn(async move { runtime.exec_sync(request).await })
            })
            .collect();
        let deadline = crate::support::within(10);
        while world.sh(&id, "ps -o args | grep -c '^[s]leep 72' || true").await != "8" {
            assert!(Instant::now() < deadline, "round {round}: they do not start");
        }
        world.crash_and_restart().await;
        for call in calls {
            call.await.unwrap().unwrap_err();
        }
        let deadline = crate::support::within(5);
        while world.sh(&id, "ps -o args | grep -c '^[s]leep 72' || true").await != "0" {
            assert!(Instant::now() < deadline, "round {round}: they still run");
        }
        while !exec_cgroups(world).is_empty() {
            assert!(Instant::now() < deadline, "{:?}", exec_cgroups(world));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn needs_a_running_container(world: &mut World) {
    let pod = world.pod("created");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let id = world.create(&pod_id, &pod, &container("main", &image, &["sleep", "9"])).await.unwrap();
    world.exec_sync(&id, &["true"], 5).await.unwrap_err();
    world.start_container(&id).await.unwrap();
    world.stop_container(&id, 0).await.unwrap();
    world.exec_sync(&id, &["true"], 5).await.unwrap_err();
    assert_code(world.exec_sync(&"e".repeat(64), &["true"], 5).await, Code::NotFound);
}

async fn unknown_command(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("unknown").await;
    let error = world.exec_sync(&id, &["no-such-command"], 5).await.unwrap_err();
    assert!(error.message().contains("no-such-command"), "{error:?}");
    assert_eq!(world.sh(&id, "echo alive").await, "alive");
}
