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
