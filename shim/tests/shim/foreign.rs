//! A third party's shim behind ours: ours once more, as containerd would start it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::Receiver;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;
use containerd_shim_protos::ttrpc::proto::Response;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

use crate::harness::{Shim, base, clean_up_at_exit, context, eventually, refusal, shim_binary};
use crate::raw::{answer_as, take_events};

/// The other shim's events go to where the receiver takes them.
fn behind(name: &str, arguments: &[&str], adapt: impl FnOnce(&mut Value)) -> (Shim, Receiver<String>) {
    let address = base().join(name);
    let events = take_events(&PathBuf::from(format!("{}.ttrpc", address.display())));
    let (program, address) = (shim_binary().display().to_string(), address.display().to_string());
    let options = ["--shim", &program, "--namespace", "n", "--address", &address];
    (Shim::spawn_with(arguments, adapt, &options), events)
}

/// A client of the other shim.
fn other(shim: &Shim) -> TaskClient {
    let said = fs::read(shim.directory.join("bundle/bootstrap.json")).unwrap();
    let said: Value = serde_json::from_slice(&said).unwrap();
    TaskClient::new(Client::connect(said["address"].as_str().unwrap()).unwrap())
}

/// Processes that serve the container.
fn serving(shim: &Shim) -> usize {
    let of_it = |name: &std::ffi::OsStr| {
        let command = fs::read(PathBuf::from("/proc").join(name).join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.contains("serve") && command.split('\0').any(|word| word == shim.id)
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|entry| of_it(&entry.file_name())).count()
}

#[test]
fn who_paused_the_container_does_not_matter() {
    clean_up_at_exit();
    let (shim, _events) = behind("paused", &["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    let status = || shim.state().status.enum_value().unwrap();
    let pause = api::PauseRequest { id: shim.id.clone(), ..Default::default() };
    let resume = api::ResumeRequest { id: shim.id.clone(), ..Default::default() };
    assert_eq!(status(), api::Status::RUNNING);
    shim.task.pause(context(), &pause).unwrap();
    assert_eq!(status(), api::Status::PAUSED);
    let other = other(&shim);
    other.resume(context(), &resume).unwrap();
    assert_eq!(status(), api::Status::RUNNING);
    other.pause(context(), &pause).unwrap();
    assert_eq!(status(), api::Status::PAUSED);
    shim.task.resume(context(), &resume).unwrap();
    assert_eq!(status(), api::Status::RUNNING);
    shim.finish();
}

#[test]
fn one_that_misbehaves_keeps_nobody_waiting() {
    clean_up_at_exit();
    let (socket, program) = (base().join("odd.sock"), base().join("odd-shim"));
    // Written by another process: what this one has open for writing, and a thread's child with it, can't be executed.
    let text = format!("#!/bin/sh\necho unix://{}\n", socket.display());
    let write = "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let made = Command::new("sh").args(["-c", write, "sh", &text]).arg(&program).status().unwrap();
    assert!(made.success());
    answer_as(&socket, |method| match method {
        "Pids" => None,
        // It has forgotten the container that it has created.
        "Wait" => {
            let mut response = Response::default();
            response.status.mut_or_insert_default().set_code(Code::NOT_FOUND);
            Some(response)
        }
        _ => Some(Response::default()),
    });
    let options = ["--shim", program.to_str().unwrap(), "--namespace", "n", "--address", "/none"];
    let shim = Shim::spawn_with(&["true"], |_| (), &options);
    shim.create();
    let pids = api::PidsRequest { id: shim.id.clone(), ..Default::default() };
    let (_, message) = refusal(shim.task.pids(context(), &pids));
    assert!(message.contains("malformed"), "{message}");
    assert_eq!(shim.wait(""), 137);
    assert_eq!(shim.exit_json()["exit_code"], 137);
    shim.finish();
}

#[test]
fn a_creation_behind_another_shim_that_nobody_waits_for_is_undone() {
    clean_up_at_exit();
    let mark = base().join("creation-goes-on");
    let script = format!(": > {}; sleep 1", mark.display());
    let (mut shim, _events) = behind("unwanted", &["sleep", "1000"], |spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    });
    let (task, request) = (shim.connect(), shim.create_request());
    let creating = std::thread::spawn(move || task.create(context(), &request));
    eventually("the hook", || mark.exists());
    let shutdown = api::ShutdownRequest { id: shim.id.clone(), ..Default::default() };
    shim.task.shutdown(context(), &shutdown).unwrap();
    eventually("the shim's end", || shim.child.try_wait().unwrap().is_some());
    eventually("the other shim's end", || serving(&shim) == 0);
    assert!(shim.cgroups().is_empty(), "{:?}", shim.cgroups());
    let _ = creating.join().unwrap();
}
