//! Output that goes to a file or a program, as `ctr` and nerdctl ask for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::{Code, Result};

use crate::harness::{Shim, base, clean_up_at_exit, context, eventually, refusal, spec};
use crate::raw::take_events;

/// Writes what it gets into files beside itself, and is a little late with it.
const WRITER: &str = r#"
directory=${0%/*}
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $HOME$BERTH $*" > "$directory/said"
exec 5>&-
cat <&4 > "$directory/err" &
cat <&3 > "$directory/out"
wait
sleep 0.2
echo done > "$directory/done"
"#;

/// A logger that is a shell script with this text; gives its directory and the URI of a stream that goes to it.
fn logger(shim: &Shim, name: &str, text: &str) -> (PathBuf, String) {
    let directory = shim.directory.join(name);
    fs::create_dir(&directory).unwrap();
    let program = directory.join("logger");
    fs::write(&program, text).unwrap();
    // Read by a shell, not executed itself: what another test's thread has open for writing can't be.
    let uri = format!("binary:///bin/sh?{}=one+value", program.display());
    (directory, uri)
}

fn create(shim: &Shim, uri: &str, terminal: bool) -> Result<api::CreateTaskResponse> {
    let stderr = if terminal { String::new() } else { uri.to_owned() };
    let request =
        api::CreateTaskRequest { stdout: uri.to_owned(), stderr, terminal, ..shim.create_request() };
    shim.task.create(context(), &request)
}

fn exec(shim: &Shim, exec_id: &str, script: &str, uri: &str) {
    let process = spec(&shim.id, &["sh", "-c", script])["process"].take();
    let any = Any { value: serde_json::to_vec(&process).unwrap(), ..Default::default() };
    let request = api::ExecProcessRequest {
        id: shim.id.clone(),
        exec_id: exec_id.into(),
        stdout: uri.to_owned(),
        stderr: uri.to_owned(),
        spec: MessageField::some(any),
        ..Default::default()
    };
    shim.task.exec(context(), &request).unwrap();
    shim.start_exec(exec_id).unwrap();
}

/// Ends of pipes that the shim itself has open, those that the test was started with among them, and its children.
fn held(shim: &Shim) -> (usize, String) {
    let pid = shim.child.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    (links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count(), children)
}

/// The same of a shim that has done nothing yet.
fn at_first(shim: &Shim) -> (usize, String) {
    let request = api::ConnectRequest { id: shim.id.clone(), ..Default::default() };
    shim.task.connect(context(), &request).unwrap();
    eventually("a shim that is at rest", || held(shim).1.is_empty());
    held(shim)
}

#[test]
fn a_program_takes_the_output_and_delete_waits_for_it() {
    clean_up_at_exit();
    let socket = base().join("loggers.sock");
    let _events = take_events(&socket);
    let options = ["--events", socket.to_str().unwrap(), "--namespace", "n"];
    let script = "echo out; echo err >&2; sleep 1000";
    let shim = Shim::spawn_with(&["sh", "-c", script], |_| (), &options);
    let (directory, uri) = logger(&shim, "main", WRITER);
    let (before, _) = at_first(&shim);
    create(&shim, &uri, false).unwrap();
    let said = fs::read_to_string(directory.join("said")).unwrap();
    assert_eq!(said, format!("{} n  one value\n", shim.id));
    shim.start();
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    eventually("the output", || text("out") == "out\n" && text("err") == "err\n");
    assert_eq!(held(&shim).0, before);

    let (of_exec, uri) = logger(&shim, "exec", WRITER);
    exec(&shim, "e", "echo from the exec; echo and that >&2", &uri);
    assert_eq!(shim.wait("e"), 0);
    shim.delete("e").unwrap();
    assert_eq!(fs::read_to_string(of_exec.join("done")).unwrap(), "done\n");
    assert_eq!(fs::read_to_string(of_exec.join("out")).unwrap(), "from the exec\n");
    assert_eq!(fs::read_to_string(of_exec.join("err")).unwrap(), "and that\n");
    assert_eq!(fs::read_to_string(of_exec.join("said")).unwrap(), "e n  one value\n");

    shim.kill("", libc::SIGKILL, true).unwrap();
    assert_eq!(shim.wait(""), 137);
    shim.delete("").unwrap();
    assert_eq!(text("done"), "done\n");
    eventually("the end of all loggers", || held(&shim).1.is_empty());
    shim.finish();
}

#[test]
fn a_terminal_goes_to_a_program_as_well() {
    clean_up_at_exit();
    let shim =
        Shim::spawn(&["sh", "-c", "tty; seq 1 5000"], |spec| spec["process"]["terminal"] = true.into());
    let (directory, uri) = logger(&shim, "main", WRITER);
    create(&shim, &uri, true).unwrap();
    shim.start();
    assert_eq!(shim.wait(""), 0);
    shim.delete("").unwrap();
    let out = fs::read_to_string(directory.join("out")).unwrap();
    assert!(out.starts_with("/dev/pts/0\r\n1\r\n") && out.ends_with("\r\n5000\r\n"), "{} bytes", out.len());
    assert_eq!(fs::read_to_string(directory.join("done")).unwrap(), "done\n");
    shim.finish();
}

#[test]
fn a_logger_that_does_not_end_is_made_to() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["true"], |_| ());
    let (_, uri) = logger(&shim, "main", "exec 5>&-\nexec sleep 1000\n");
    create(&shim, &uri, false).unwrap();
    shim.start();
    assert_eq!(shim.wait(""), 0);
    shim.delete("").unwrap();
    eventually("the logger's end", || held(&shim).1.is_empty());
    shim.finish();
}

#[test]
fn without_its_logger_a_container_is_not_held_up() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["yes"], |_| ());
    // It is ready, and then gone.
    let (_, uri) = logger(&shim, "main", "exec 5>&-\n");
    create(&shim, &uri, false).unwrap();
    shim.start();
    // Its writes break: SIGPIPE, or an error where the command ignores that.
    assert_ne!(shim.wait(""), 0);
    shim.finish();
}

#[test]
fn a_logger_that_can_not_be_had_fails_the_creation() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["true"], |_| ());
    let (_, failing) = logger(&shim, "failing", "exit 3\n");
    let (_, silent) = logger(&shim, "silent", "exec 5>&-\nexec sleep 1000\n");
    let before = at_first(&shim);
    let (_, message) = refusal(create(&shim, "binary:///no/such/logger", false));
    assert!(message.contains("/no/such/logger"), "{message}");
    let (_, message) = refusal(create(&shim, &failing, false));
    assert!(message.contains("exit status: 3"), "{message}");
    let (_, message) = refusal(create(&shim, &silent.replace("binary:", "binary-v2:"), false));
    assert!(message.contains("did not say that it is ready"), "{message}");
    let (code, _) = refusal(create(&shim, "binary://relative", false));
    assert_eq!(code, Code::INVALID_ARGUMENT);
    eventually("that nothing is held", || held(&shim) == before);
    // Another one may be tried.
    let (directory, uri) = logger(&shim, "main", WRITER);
    create(&shim, &uri, false).unwrap();
    shim.start();
    shim.wait("");
    shim.delete("").unwrap();
    assert!(directory.join("done").exists());
    shim.finish();
}

#[test]
fn a_file_takes_both_streams_behind_what_is_there() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "echo out; echo err >&2; sleep 1000"], |_| ());
    let path = shim.directory.join("made for it/out.log");
    let uri = format!("file://{}", path.display().to_string().replace(' ', "%20"));
    create(&shim, &uri, false).unwrap();
    fs::write(&path, "before\n").unwrap();
    shim.start();
    let lines = || {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    eventually("both lines", || lines() == ["before", "err", "out"]);
    exec(&shim, "e", "echo in", &uri);
    assert_eq!(shim.wait("e"), 0);
    shim.delete("e").unwrap();
    assert_eq!(lines(), ["before", "err", "in", "out"]);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o644);
    shim.finish();
    let directory = base().join("no directory");
    fs::write(&directory, "").unwrap();
    let shim = Shim::spawn(&["true"], |_| ());
    let uri = format!("file://{}/x/y", directory.display());
    assert_eq!(refusal(create(&shim, &uri, false)).0, Code::INVALID_ARGUMENT);
    shim.finish();
}
