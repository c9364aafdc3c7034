//! Create, start, wait, kill, delete.

use std::fs;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::harness::{Shim, clean_up_at_exit, context, eventually, refusal};

#[test]
fn a_container_runs_and_its_end_is_known() {
    clean_up_at_exit();
    let shim = Shim::spawn(
        &["sh", "-c", "echo out; echo err >&2; id -u; echo $HOME $WHO; printf tail; exit 7"],
        |_| (),
    );
    let pid = shim.create();
    assert_eq!(shim.state().status.enum_value(), Ok(api::Status::CREATED));
    assert_eq!(shim.start(), pid);
    assert_eq!(shim.wait(""), 7);
    assert_eq!(shim.state().status.enum_value(), Ok(api::Status::STOPPED));
    let exit = shim.exit_json();
    assert_eq!(
        (exit["exit_code"].as_i64(), exit["signal"].as_i64(), exit["oom_killed"].as_bool()),
        (Some(7), Some(0), Some(false))
    );
    let mut lines = shim.texts();
    lines.sort();
    assert_eq!(lines, ["/root berth", "0", "err", "out", "tail"], "{}", shim.log());
    assert!(shim.log().lines().any(|line| line.ends_with(" stderr F err")));
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    assert_eq!(refusal(shim.delete("")).0, Code::NOT_FOUND);
    shim.finish();
}

#[test]
fn a_signal_is_told_as_128_and_its_number() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    shim.kill("", libc::SIGKILL, false).unwrap();
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.exit_json()["signal"], 9);
    assert_eq!(refusal(shim.kill("", libc::SIGTERM, false)).0, Code::NOT_FOUND);
    shim.finish();
}

#[test]
fn what_was_created_but_never_started_can_be_deleted() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["true"], |_| ());
    shim.create();
    assert!(!shim.cgroups().is_empty());
    shim.delete("").unwrap();
    shim.finish();
}

#[test]
fn commands_that_cannot_run_fail_the_creation_by_name() {
    clean_up_at_exit();
    let cases = [
        ("no-such-command", "exec: \"no-such-command\": executable file not found in $PATH"),
        ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
        ("/etc/plain", "exec: \"/etc/plain\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ];
    for (command, expected) in cases {
        let shim = Shim::spawn(&[command], |_| ());
        let (_, message) = refusal(shim.task.create(context(), &shim.create_request()));
        assert_eq!(message, expected);
        eventually("the cgroup's removal", || shim.cgroups().is_empty());
        shim.finish();
    }
}

#[test]
fn a_missing_mount_source_and_a_missing_log_directory_are_named() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["true"], |spec| {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/volume", "options": ["rbind", "rw"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    let mut request = shim.create_request();
    let (code, message) = refusal(shim.task.create(context(), &request));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("mount source /no/such/volume (for /data): No such file"), "{message}");
    request.stdout = "cri-log:///no/such/directory/0.log".into();
    let (_, message) = refusal(shim.task.create(context(), &request));
    assert!(message.starts_with("opening the log /no/such/directory/0.log: No such file"), "{message}");
    let mut wrong = shim.create_request();
    wrong.rootfs[0].options[0] = "lowerdir=/no/such/layer".into();
    let (_, message) = refusal(shim.task.create(context(), &wrong));
    assert!(message.contains("/no/such/layer"), "{message}");
    shim.finish();
}

#[test]
fn an_oom_kill_is_noticed() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "x=a; while true; do x=$x$x; done"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20});
    });
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.exit_json()["oom_killed"], true);
    shim.finish();
}

#[test]
fn a_grandchild_that_holds_the_log_does_not_delay_the_end() {
    clean_up_at_exit();
    // In the host's PID namespace nothing ends the grandchild with the container's first process.
    const LINE: &str = "(trap 'echo late' USR1; echo early; while :; do :; done) &";
    let shim = Shim::spawn(&["sh", "-c", LINE], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    shim.create();
    shim.start();
    // The shim would read on for ten seconds.
    let deadline = Instant::now() + Duration::from_secs(5);
    assert_eq!(shim.wait(""), 0);
    assert!(Instant::now() < deadline, "the end waited for the grandchild");
    eventually("the early line", || shim.texts() == ["early"]);
    shim.kill("", libc::SIGUSR1, true).unwrap();
    eventually("the late line", || shim.texts() == ["early", "late"]);
    shim.kill("", libc::SIGKILL, true).unwrap();
    eventually("the grandchild's end", || {
        shim.cgroups().iter().all(|path| fs::read_to_string(path.join("cgroup.procs")).unwrap().is_empty())
    });
    shim.finish();
}

#[test]
fn clients_come_and_go() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "sleep 0.5; exit 3"], |_| ());
    shim.create();
    shim.start();
    let request = api::WaitRequest { id: shim.id.clone(), ..Default::default() };
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let (task, request) = (shim.connect(), request.clone());
            std::thread::spawn(move || task.wait(context(), &request).unwrap().exit_status)
        })
        .collect();
    drop(shim.connect());
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), 3);
    }
    assert_eq!(shim.connect().wait(context(), &request).unwrap().exit_status, 3);
    shim.finish();
}

#[test]
fn pause_resume_pids_and_update() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    let pid = shim.create();
    shim.start();
    let id = shim.id.clone();
    let pids = shim.task.pids(context(), &api::PidsRequest { id: id.clone(), ..Default::default() }).unwrap();
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    shim.task.pause(context(), &api::PauseRequest { id: id.clone(), ..Default::default() }).unwrap();
    assert_eq!(shim.state().status.enum_value(), Ok(api::Status::PAUSED));
    shim.task.resume(context(), &api::ResumeRequest { id: id.clone(), ..Default::default() }).unwrap();
    assert_eq!(shim.state().status.enum_value(), Ok(api::Status::RUNNING));
    let resources = containerd_shim_protos::protobuf::well_known_types::any::Any {
        value: serde_json::to_vec(&json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 33}})).unwrap(),
        ..Default::default()
    };
    let request = api::UpdateTaskRequest {
        id,
        resources: containerd_shim_protos::protobuf::MessageField::some(resources),
        ..Default::default()
    };
    shim.task.update(context(), &request).unwrap();
    let value = |file: &str| {
        let path = shim.cgroups().into_iter().map(|path| path.join(file)).find(|path| path.exists()).unwrap();
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(value("pids.max"), "33");
    if fs::exists("/sys/fs/cgroup/memory").unwrap() {
        assert_eq!(value("memory.limit_in_bytes"), (64 << 20).to_string());
    }
    shim.finish();
}

#[test]
fn limits_the_kernel_refuses_are_capped() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "cat /proc/self/oom_score_adj; ulimit -n"], |spec| {
        spec["process"]["oomScoreAdj"] = json!(-998);
        spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": 1u64 << 30, "hard": 1u64 << 30}]);
    });
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 0, "{}", shim.log());
    assert_eq!(shim.texts().len(), 2);
    shim.finish();
}
