//! What containerd sees of a shim.

use std::fs;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use serde_json::json;

use crate::harness::{Shim, base, clean_up_at_exit, shim_binary};
use crate::raw::take_events;

#[test]
fn a_start_is_told_before_the_end_also_when_hooks_outlast_the_command() {
    clean_up_at_exit();
    let socket = base().join("events.sock");
    let events = take_events(&socket);
    let options = ["--events", socket.to_str().unwrap(), "--namespace", "n"];
    let with_hook = |spec: &mut serde_json::Value| {
        spec["hooks"] = json!({"poststart": [{"path": "/bin/sleep", "args": ["sleep", "0.3"]}]});
    };
    let shim = Shim::spawn_with(&["true"], with_hook, &options);
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 0);
    shim.delete("").unwrap();
    let told: Vec<String> =
        (0..4).map(|_| events.recv_timeout(Duration::from_secs(10)).expect("an event")).collect();
    assert_eq!(told, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    shim.finish();
}

#[test]
fn that_memory_ran_out_is_told_when_it_happens() {
    clean_up_at_exit();
    let socket = base().join("memory.sock");
    let events = take_events(&socket);
    let options = ["--events", socket.to_str().unwrap(), "--namespace", "n"];
    // The shell goes on when the kernel has killed what it started.
    let script = "head -c 200m /dev/zero | tail -n 1 > /dev/null; sleep 1000";
    let limited = |spec: &mut serde_json::Value| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 32 << 20});
    };
    let shim = Shim::spawn_with(&["sh", "-c", script], limited, &options);
    shim.create();
    shim.start();
    let next = || events.recv_timeout(Duration::from_secs(10)).expect("an event");
    assert_eq!([next(), next(), next()], ["/tasks/create", "/tasks/start", "/tasks/oom"]);
    shim.kill("", libc::SIGKILL, true).unwrap();
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.exit_json()["oom_killed"], true);
    shim.delete("").unwrap();
    // It is not told once more in the end.
    assert_eq!([next(), next()], ["/tasks/exit", "/tasks/delete"]);
    shim.finish();
}

#[test]
fn a_container_that_ended_before_its_shim_keeps_its_time() {
    clean_up_at_exit();
    let bundle = base().join("ended");
    fs::create_dir(&bundle).unwrap();
    let exit = json!({"pid": 77, "exit_code": 3, "signal": 0, "exited_at_ns": 1_700_000_000_250_000_000_i64});
    fs::write(bundle.join("exit.json"), exit.to_string()).unwrap();
    let output = Command::new(shim_binary())
        .args(["-namespace", "n", "-address", "/none", "-id", "ended", "-bundle"])
        .arg(&bundle)
        .arg("delete")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer = api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((answer.pid, answer.exit_status), (77, 3));
    assert_eq!((answer.exited_at.seconds, answer.exited_at.nanos), (1_700_000_000, 250_000_000));
}
