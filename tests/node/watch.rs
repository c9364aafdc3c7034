//! What stays in the pod: `berth node watch` and `await-daemonset`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use crate::host::{Host, text};

/// A program that is killed, and waited for, when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it. Returns where it listens.
fn watch(host: &Host) -> (Running, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(["node", "watch", "--listen", "127.0.0.1:0", "--root"]).arg(host.root());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Running(child), line.trim().strip_prefix("listening on ").unwrap().to_owned())
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn it_is_ready_while_the_files_are_as_installed() {
    let host = Host::new();
    let (nothing, address) = watch(&host);
    assert_eq!(get(&address, "/healthz").0, 200);
    let (status, why) = get(&address, "/readyz");
    assert!(status == 503 && why.contains("nothing is installed"), "{why}");
    drop(nothing);
    host.install("runtimeclass", "1.0.0", &[]);
    let (running, address) = watch(&host);
    assert_eq!(get(&address, "/readyz"), (200, "ok\n".into()));
    assert_eq!(get(&address, "/other").0, 404);
    assert_eq!(get(&address, "/metrics").0, 502, "no daemon, no numbers");
    drop(running);
    host.write("opt/berth/versions/1.0.0/bin/berth-shim", "something else");
    let (running, address) = watch(&host);
    let (status, why) = get(&address, "/readyz");
    assert!(status == 503 && why.contains("berth-shim is changed"), "{why}");
    // As the first process of a pod it has to end by SIGTERM.
    let mut running = running;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(running.0.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn the_daemon_s_answers_are_passed_on() {
    let host = Host::new();
    host.install("node", "1.0.0", &["--no-switch"]);
    let (_running, address) = watch(&host);
    let (status, why) = get(&address, "/readyz");
    assert!(status == 503 && why.contains("metrics.sock"), "{why}");
    std::fs::create_dir_all(host.path("run/berth")).unwrap();
    let listener = UnixListener::bind(host.path("run/berth/metrics.sock")).unwrap();
    let (send, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in [
            "HTTP/1.0 200 OK\r\n\r\nberth_pods 3\n",
            "HTTP/1.0 503 Service Unavailable\r\n\r\nNetworkReady: no bridge\n",
            "HTTP/1.0 200 OK\r\n\r\nok\n",
            "garbage",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            while reader.read_line(&mut String::new()).unwrap() > 2 {}
            send.send(line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    assert_eq!(get(&address, "/metrics"), (200, "berth_pods 3\n".into()));
    assert_eq!(asked.recv().unwrap(), "GET /metrics HTTP/1.0\r\n");
    assert_eq!(get(&address, "/readyz"), (503, "NetworkReady: no bridge\n".into()));
    assert_eq!(get(&address, "/readyz").0, 200);
    assert_eq!(get(&address, "/metrics").0, 502);
}

#[test]
fn it_waits_until_all_pods_of_a_daemonset_are_ready() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("token"), "secret\n").unwrap();
    let api = std::thread::spawn(move || {
        let status = |ready: i64| {
            format!(
                "{{\"metadata\":{{\"generation\":1}},\"status\":{{\"observedGeneration\":1,\"desiredNumberScheduled\":2,\
                 \"updatedNumberScheduled\":2,\"numberReady\":{ready}}}}}"
            )
        };
        for (code, body) in [("503 Busy", "later".to_owned()), ("200 OK", status(1)), ("200 OK", status(2))] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while reader.read_line(&mut head).unwrap() > 2 {}
            assert!(head.starts_with("GET /apis/apps/v1/namespaces/a/daemonsets/b HTTP/1.1"), "{head}");
            assert!(head.to_ascii_lowercase().contains("authorization: bearer secret\r\n"), "{head}");
            let length = body.len();
            write!(stream, "HTTP/1.1 {code}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
                .unwrap();
        }
    });
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["node", "await-daemonset", "a/b", "--server", &server, "--account"])
        .arg(account.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("2 of 2 nodes done"));
    api.join().unwrap();
}

/// An API server that answers each request with 200 and hands out its head's first line and body.
fn api() -> (String, mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let (send, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut head = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while reader.read_line(&mut head).unwrap() > 2 {}
            assert!(head.to_ascii_lowercase().contains("authorization: bearer secret\r\n"), "{head}");
            assert!(
                head.to_ascii_lowercase().contains("content-type: application/merge-patch+json\r\n"),
                "{head}"
            );
            let length = head.to_ascii_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length: ").map(|length| length.parse::<usize>().unwrap())
            });
            let mut body = vec![0; length.unwrap()];
            reader.read_exact(&mut body).unwrap();
            // The first is refused, as by an API server that is just not there.
            let status = if number == 0 { "503 Busy" } else { "200 OK" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}")
                .unwrap();
            let line = head.lines().next().unwrap().to_owned();
            if number > 0 && send.send((line, String::from_utf8(body).unwrap())).is_err() {
                return;
            }
        }
    });
    (server, asked)
}

#[test]
fn the_node_is_labelled_by_whether_it_is_ready() {
    let host = Host::new();
    host.install("runtimeclass", "1.0.0", &[]);
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("token"), "secret\n").unwrap();
    let (server, asked) = api();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args([
            "node",
            "watch",
            "--listen",
            "127.0.0.1:0",
            "--label",
            "node-1.example",
            "--server",
            &server,
        ]);
        command.arg("--account").arg(account.path()).arg("--root").arg(host.root());
        Running(command.stdout(Stdio::null()).spawn().unwrap())
    };
    let end = |mut running: Running| {
        let pid = nix::unistd::Pid::from_raw(running.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
    };
    let patch = |value: &str| {
        let line = "PATCH /api/v1/nodes/node-1.example HTTP/1.1".to_owned();
        (line, format!("{{\"metadata\":{{\"labels\":{{\"berth.dev/ready\":{value}}}}}}}"))
    };
    let running = start();
    assert_eq!(asked.recv().unwrap(), patch("\"true\""));
    end(running);
    assert_eq!(asked.recv().unwrap(), patch("null"), "nobody looks after it any more");
    host.write("opt/berth/versions/1.0.0/bin/berth-shim", "something else");
    let running = start();
    assert_eq!(asked.recv().unwrap(), patch("\"false\""));
    end(running);
    assert_eq!(asked.recv().unwrap(), patch("null"));
    let refused = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["node", "watch", "--listen", "127.0.0.1:0", "--server", &server, "--label", "../pods"])
        .output()
        .unwrap();
    assert!(!refused.status.success() && text(&refused).contains("no node's name"), "{}", text(&refused));
}
