//! Full disks, clients that ask at the wrong time, containers that nobody wants any more.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::{Code, Result};
use serde_json::{Value, json};

use crate::harness::{Shim, clean_up_at_exit, context, eventually, refusal};
use crate::raw::Raw;

fn pause(shim: &Shim) -> Result<api::Empty> {
    shim.task.pause(context(), &api::PauseRequest { id: shim.id.clone(), ..Default::default() })
}

fn resume(shim: &Shim) -> Result<api::Empty> {
    shim.task.resume(context(), &api::ResumeRequest { id: shim.id.clone(), ..Default::default() })
}

fn without_pid_namespace(spec: &mut Value) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
}

#[test]
fn a_full_disk_costs_no_exit_status() {
    clean_up_at_exit();
    // The shim's own log can't be written either, as both lie in the bundle.
    let shim = Shim::spawn_saying(&["sh", "-c", "exit 7"], |_| (), &[], Path::new("/dev/full"));
    fs::create_dir(shim.directory.join("bundle/exit.json.tmp")).unwrap();
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 7);
    assert_eq!(shim.state().exit_status, 7);
    shim.finish();
}

#[test]
fn the_shims_own_log_has_an_end() {
    const MAX: u64 = 1 << 20;
    clean_up_at_exit();
    let log = crate::harness::base().join("long.log");
    fs::File::create(&log).unwrap().set_len(MAX).unwrap();
    let shim = Shim::spawn_saying(&["true"], |_| (), &[], &log);
    fs::create_dir(shim.directory.join("bundle/exit.json.tmp")).unwrap();
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 0);
    assert_eq!(fs::metadata(&log).unwrap().len(), MAX);
    shim.finish();
}

#[test]
fn a_paused_container_can_be_killed() {
    clean_up_at_exit();
    for all in [true, false] {
        let shim = Shim::spawn(&["sleep", "1000"], |_| ());
        shim.create();
        shim.start();
        pause(&shim).unwrap();
        shim.kill("", libc::SIGKILL, all).unwrap();
        assert_eq!(shim.wait(""), 137);
        shim.finish();
    }
}

#[test]
fn pausing_is_refused_where_it_makes_no_sense() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    assert_eq!(refusal(pause(&shim)).0, Code::FAILED_PRECONDITION, "not started");
    shim.start();
    assert_eq!(refusal(resume(&shim)).0, Code::FAILED_PRECONDITION, "not paused");
    pause(&shim).unwrap();
    assert_eq!(refusal(pause(&shim)).0, Code::FAILED_PRECONDITION, "paused already");
    shim.exec("e", &["true"], |_| ());
    let (code, message) = refusal(shim.start_exec("e"));
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.contains("paused"), "{message}");
    resume(&shim).unwrap();
    shim.start_exec("e").unwrap();
    assert_eq!(shim.wait("e"), 0);
    shim.kill("", libc::SIGKILL, true).unwrap();
    shim.wait("");
    assert_eq!(refusal(pause(&shim)).0, Code::FAILED_PRECONDITION, "ended");
    shim.finish();
}

#[test]
fn starting_an_exec_again_and_again_holds_nothing_open() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    shim.exec("e", &["sleep", "1000"], |_| ());
    shim.start_exec("e").unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.child.id())).unwrap().count();
    let before = descriptors();
    for _ in 0..20 {
        assert_eq!(refusal(shim.start_exec("e")).0, Code::FAILED_PRECONDITION);
    }
    assert!(descriptors() <= before, "{before} -> {}", descriptors());
    shim.finish();
}

#[test]
fn a_creation_that_nobody_waits_for_is_undone() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |spec| {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", ": > hook-runs; sleep 1"]});
        spec["hooks"] = json!({"createRuntime": [hook]});
    });
    // Where hooks run is not said: the file is named by its whole path.
    let mark = shim.directory.join("hook-runs");
    let file = shim.directory.join("bundle/config.json");
    let text = fs::read_to_string(&file).unwrap().replace("hook-runs", &mark.display().to_string());
    fs::write(&file, text).unwrap();
    let mut shim = shim;
    let (task, request) = (shim.connect(), shim.create_request());
    let creating = std::thread::spawn(move || task.create(context(), &request));
    eventually("the hook", || mark.exists());
    let shutdown = api::ShutdownRequest { id: shim.id.clone(), ..Default::default() };
    shim.task.shutdown(context(), &shutdown).unwrap();
    eventually("the shim's end", || shim.child.try_wait().unwrap().is_some());
    assert!(shim.cgroups().is_empty(), "{:?}", shim.cgroups());
    let _ = creating.join().unwrap();
}

#[test]
fn who_waits_for_an_exec_is_told_when_its_container_is_deleted() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], without_pid_namespace);
    shim.create();
    shim.start();
    shim.exec("e", &["sleep", "1000"], |_| ());
    shim.start_exec("e").unwrap();
    let mut waiting = Raw::connect(&shim.directory.join("shim.sock"));
    let wait = api::WaitRequest { id: shim.id.clone(), exec_id: "e".into(), ..Default::default() };
    waiting.ask(1, "Wait", &wait);
    // Calls of one connection are taken in order.
    waiting.ask(3, "State", &api::StateRequest { id: shim.id.clone(), ..Default::default() });
    assert_eq!(waiting.answer().0, 3);
    shim.kill("", libc::SIGKILL, false).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();
    let (stream, response) = waiting.answer();
    assert_eq!(stream, 1);
    assert_eq!(api::WaitResponse::parse_from_bytes(&response.payload).unwrap().exit_status, 137);
    shim.finish();
}

#[test]
fn a_deletion_that_is_refused_kills_nobody() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    // Both calls come with one read: the second finds the first one under way.
    let mut client = Raw::connect(&shim.directory.join("shim.sock"));
    let resources = Any { value: b"{}".to_vec(), ..Default::default() };
    let update = api::UpdateTaskRequest {
        id: shim.id.clone(),
        resources: MessageField::some(resources),
        ..Default::default()
    };
    let delete = api::DeleteRequest { id: shim.id.clone(), ..Default::default() };
    client.ask_all(&[(1, "Update", &update), (3, "Delete", &delete)]);
    let (stream, response) = client.answer();
    assert_eq!((stream, response.status.code.value()), (3, Code::FAILED_PRECONDITION as i32));
    assert_eq!(client.answer().0, 1);
    let pid = shim.start();
    let command = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    eventually("the command", || command() == "sleep\n");
    shim.finish();
}

#[test]
fn without_descriptors_the_shim_waits_for_some() {
    const OPEN_MAX: u64 = 24;
    clean_up_at_exit();
    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(shim.child.id()).unwrap());
    let limits = libc::rlimit { rlim_cur: OPEN_MAX, rlim_max: OPEN_MAX };
    set_open_files(pid, limits);
    let socket = shim.directory.join("shim.sock");
    let mut clients: Vec<Raw> = (0..OPEN_MAX).map(|_| Raw::connect(&socket)).collect();
    let log = || fs::read_to_string(shim.directory.join("bundle/shim.log")).unwrap();
    eventually("that it says so", || log().contains("accepting a client: "));
    // It does not try without end: between two of its tries it sleeps.
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = switches();
    eventually("its sleep", || switches() >= before + 3);
    // Who is there is served, and who waits is let in when others have gone.
    assert_eq!(shim.state().status.enum_value(), Ok(api::Status::RUNNING));
    let mut last = clients.pop().unwrap();
    last.ask(1, "State", &api::StateRequest { id: shim.id.clone(), ..Default::default() });
    drop(clients);
    assert_eq!(last.answer().0, 1);
    assert_eq!(log().matches("accepting a client: ").count(), 1, "{}", log());
    shim.finish();
}

#[allow(unsafe_code)]
fn set_open_files(pid: nix::unistd::Pid, limits: libc::rlimit) {
    // SAFETY: `limits` outlives the call.
    let set =
        unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &raw const limits, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

#[test]
fn a_text_with_a_zero_byte_is_refused() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["echo", "one\0two"], |_| ());
    let (code, message) = refusal(shim.task.create(context(), &shim.create_request()));
    assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
    assert!(message.contains("zero byte"), "{message}");
    shim.finish();

    let shim = Shim::spawn(&["sleep", "1000"], |_| ());
    shim.create();
    shim.start();
    shim.exec("e", &["true"], |process| process["env"] = json!(["PATH=/bin", "A=b\0c"]));
    let (_, message) = refusal(shim.start_exec("e"));
    assert!(message.contains("zero byte"), "{message}");
    shim.finish();
}
