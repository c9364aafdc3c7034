//! The log in the CRI format.

use std::fs;

use crate::harness::{Shim, clean_up_at_exit, context};

#[test]
fn long_lines_are_split_and_every_line_has_a_time() {
    clean_up_at_exit();
    let script = "head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo short";
    let shim = Shim::spawn(&["sh", "-c", script], |_| ());
    shim.create();
    shim.start();
    assert_eq!(shim.wait(""), 0);
    let log = shim.log();
    let parts: Vec<(String, usize)> = log
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            assert_eq!(fields[0].len(), "2026-01-01T00:00:00.000000000Z".len(), "{line}");
            (fields[2].to_owned(), fields[3].len())
        })
        .collect();
    let expected = [("P", 16384), ("P", 16384), ("F", 7232), ("F", 5)];
    assert_eq!(parts, expected.map(|(tag, length)| (tag.to_owned(), length)));
    shim.finish();
}

#[test]
fn rotation_under_load_loses_and_tears_nothing() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "seq 1 300000"], |_| ());
    shim.create();
    shim.start();
    let mut rotated = Vec::new();
    while shim.state().status.enum_value() == Ok(containerd_shim_protos::api::Status::RUNNING) {
        let name = shim.directory.join(format!("logs/0.log.{}", rotated.len()));
        if fs::rename(shim.log_path(), &name).is_ok() {
            shim.reopen_log();
            rotated.push(name);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(shim.wait(""), 0);
    let mut all = String::new();
    for path in rotated.iter().chain([&shim.log_path()]) {
        let text = fs::read_to_string(path).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'));
        all.push_str(&text);
    }
    assert!(rotated.len() > 1, "too fast to rotate");
    let numbers: Vec<u32> =
        all.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.len(), 300_000);
    assert!(numbers.iter().zip(1..).all(|(number, expected)| *number == expected));
    shim.finish();
}

#[test]
fn a_terminal_goes_to_the_log_as_stdout_and_can_be_resized() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "tty; sleep 0.3; stty size; echo oops >&2"], |spec| {
        spec["process"]["terminal"] = true.into();
    });
    let mut request = shim.create_request();
    request.terminal = true;
    shim.task.create(context(), &request).unwrap();
    shim.start();
    let resize = containerd_shim_protos::api::ResizePtyRequest {
        id: shim.id.clone(),
        width: 132,
        height: 43,
        ..Default::default()
    };
    shim.task.resize_pty(context(), &resize).unwrap();
    assert_eq!(shim.wait(""), 0);
    let lines: Vec<String> = shim.texts().iter().map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(lines, ["/dev/pts/0", "43 132", "oops"]);
    assert!(shim.log().lines().all(|line| line.contains(" stdout F ")));
    shim.finish();
}

#[test]
fn stdin_is_a_fifo_until_it_is_closed() {
    use std::io::Write;
    clean_up_at_exit();
    let shim = Shim::spawn(&["cat"], |_| ());
    let stdin = shim.directory.join("stdin");
    nix::unistd::mkfifo(&stdin, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut request = shim.create_request();
    request.stdin = stdin.display().to_string();
    shim.task.create(context(), &request).unwrap();
    shim.start();
    for text in ["one\n", "two\n"] {
        fs::OpenOptions::new().write(true).open(&stdin).unwrap().write_all(text.as_bytes()).unwrap();
    }
    let close = containerd_shim_protos::api::CloseIORequest {
        id: shim.id.clone(),
        stdin: true,
        ..Default::default()
    };
    shim.task.close_io(context(), &close).unwrap();
    assert_eq!(shim.wait(""), 0);
    assert_eq!(shim.texts(), ["one", "two"]);
    shim.finish();
}

#[test]
fn output_to_fifos_without_a_reader_does_not_kill_the_container() {
    clean_up_at_exit();
    let shim = Shim::spawn(&["sh", "-c", "echo hello; echo more; exit 4"], |_| ());
    let out = shim.directory.join("stdout");
    nix::unistd::mkfifo(&out, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut request = shim.create_request();
    request.stdout = out.display().to_string();
    request.stderr = String::new();
    shim.task.create(context(), &request).unwrap();
    shim.start();
    assert_eq!(shim.wait(""), 4);
    shim.finish();
}
