//! Interoperability: clients that others wrote.
//!
//! `kubectl` speaks SPDY (Debian's 1.20), and from 1.31 on WebSocket, port-forward included. Python's `websocket` (Debian's
//! python3-websocket) speaks the channel protocols without any knowledge of Kubernetes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use k8s_cri::v1::ContainerConfig;
use libtest_mimic::Trial;

use crate::support::runtime::find;
use crate::support::spec::script;
use crate::support::streaming::api_server::{ApiServer, Shown};
use crate::support::streaming::{ALL, OUTPUT};
use crate::support::{World, http};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![kubectl_over_spdy, kubectl_over_websocket, python_over_websocket]
}

/// kubectl, a server for it, and how it is to speak.
struct Kubectl<'a> {
    world: &'a World,
    program: PathBuf,
    server: ApiServer,
    websocket: bool,
}

/// `BERTH_TEST_KUBECTL`, or the one that is installed.
fn program() -> PathBuf {
    std::env::var_os("BERTH_TEST_KUBECTL").map_or_else(|| find("kubectl").into(), PathBuf::from)
}

/// Whether a program is not here, said for the log. `tests/setup.sh peers` installs all; the emulated machine has few.
fn missing(program: impl Into<PathBuf>) -> bool {
    let program = program.into();
    let missing = !program.exists();
    if missing {
        println!("skipped: {} is not here", program.display());
    }
    missing
}

/// The minor version.
fn minor(program: &PathBuf) -> u32 {
    let output = Command::new(program).args(["version", "--client", "-o", "json"]).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let minor = version["clientVersion"]["minor"].as_str().unwrap();
    minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--server=http://{}", self.server.address))
            .args(arguments)
            .env("HOME", &self.world.run)
            .env("KUBECONFIG", "/dev/null")
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", self.websocket.to_string())
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", self.websocket.to_string())
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end, at most a minute.
    fn run(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        self.world.netns.run(|| {
            let mut command = Command::new("timeout");
            let inner = self.command(arguments);
            command.arg("60").arg(inner.get_program()).args(inner.get_args());
            for (name, value) in inner.get_envs() {
                command.env(name, value.unwrap());
            }
            let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut process = piped.spawn().unwrap();
            let mut input = process.stdin.take().unwrap();
            let writing = stdin.to_vec();
            let writer = std::thread::spawn(move || drop(input.write_all(&writing)));
            let output = process.wait_with_output().unwrap();
            writer.join().unwrap();
            output
        })
    }

    fn background(&self, arguments: &[&str]) -> Running {
        let process = self.world.netns.run(|| self.command(arguments).stdout(Stdio::piped()).spawn());
        Running(process.unwrap())
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

async fn kubectl_over_spdy(world: &mut World) {
    if missing(program()) {
        return;
    }
    kubectl(world, false).await;
}

async fn kubectl_over_websocket(world: &mut World) {
    if missing(program()) {
        return;
    }
    let version = minor(&program());
    if version < 31 {
        println!("skipped: kubectl 1.{version} knows no WebSocket, 1.31 does");
        return;
    }
    kubectl(world, true).await;
}

async fn kubectl(world: &mut World, websocket: bool) {
    let image = world.image("web").await;
    let pod = world.pod("peer");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let web = crate::support::container("web", &image, &[]);
    let web = world.launch(&pod_id, &pod, &web).await.unwrap();
    let line = "while read line; do [ \"$line\" = end ] && exit 3; echo \"got $line\"; done; echo closed; sleep 100000";
    let parrot = ContainerConfig { stdin: true, ..script("parrot", &image, line) };
    let parrot = world.launch(&pod_id, &pod, &parrot).await.unwrap();
    let shown = |name: &str, container: &str, stdin| Shown {
        name: name.to_owned(),
        pod: pod_id.clone(),
        container: container.to_owned(),
        stdin,
        tty: false,
    };
    let server = ApiServer::start(world, vec![shown("web", &web, false), shown("parrot", &parrot, true)]);
    let kubectl = Kubectl { world, program: program(), server, websocket };
    // The runtime's workers serve the stand-in while this thread waits for kubectl.
    commands(&kubectl);
    attached(&kubectl);
    forwarded(&kubectl);
    let gone = async { super::streaming_exec::gone(world, &web, "[s]leep 4321").await };
    gone.await;
}

fn commands(kubectl: &Kubectl<'_>) {
    let output = kubectl.run(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).starts_with("err\n"), "{output:?}");
    assert!(text(&output.stderr).contains("exit code 7"), "{output:?}");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let output = kubectl.run(&["exec", "web", "--", "no-such-command"], b"");
    assert!(!output.status.success() && text(&output.stderr).contains("no-such-command"), "{output:?}");
    // The end of the input, and output after it.
    let data = vec![b'x'; 5_000_000];
    let output = kubectl.run(&["exec", "-i", "web", "--", "sh", "-c", "wc -c; echo after"], &data);
    assert_eq!(text(&output.stdout), "5000000\nafter\n", "{output:?}");
    let output = kubectl.run(&["exec", "-i", "web", "--", "cat"], &data);
    assert!(output.status.success() && output.stdout == data, "{} bytes", output.stdout.len());
    // A terminal, of the size of the client's own.
    let inner = kubectl.command(&["exec", "-it", "web", "--", "stty", "size"]);
    let words: Vec<_> = inner.get_args().map(|word| word.to_str().unwrap()).collect();
    let line =
        format!("stty cols 91 rows 33; exec timeout 60 {} {}", kubectl.program.display(), words.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]);
    for (name, value) in inner.get_envs() {
        terminal.env(name, value.unwrap());
    }
    let output = kubectl.world.netns.run(|| terminal.stdin(Stdio::null()).output()).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("33 91"), "{output:?}");
    // Files are copied by tar through exec.
    let file = kubectl.world.run.join("copied");
    std::fs::write(&file, &data).unwrap();
    let output = kubectl.run(&["cp", file.to_str().unwrap(), "web:/tmp/copied"], b"");
    assert!(output.status.success(), "{output:?}");
    let output = kubectl.run(&["exec", "web", "--", "wc", "-c", "/tmp/copied"], b"");
    assert_eq!(text(&output.stdout), "5000000 /tmp/copied\n");
    // A client that is killed takes its command along.
    let mut killed = kubectl.background(&["exec", "web", "--", "sh", "-c", "echo here; sleep 4321"]);
    let mut first = String::new();
    BufReader::new(killed.0.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "here\n");
}

fn attached(kubectl: &Kubectl<'_>) {
    let mut client = Command::new("true");
    kubectl.world.netns.run(|| {
        client = kubectl.command(&["attach", "-i", "parrot"]);
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
    });
    let mut running = Running(kubectl.world.netns.run(|| client.spawn()).unwrap());
    let mut input = running.0.stdin.take().unwrap();
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    for word in ["one", "two"] {
        writeln!(input, "{word}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("got {word}\n"));
    }
    // Another one beside it, and the container's end ends both.
    let mut second = kubectl.background(&["attach", "parrot"]);
    let mut seen = BufReader::new(second.0.stdout.take().unwrap());
    let (sender, first) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = seen.read_line(&mut line);
        let _ = sender.send(line);
        let _ = std::io::copy(&mut seen, &mut std::io::sink());
    });
    let deadline = crate::support::within(20);
    let line = loop {
        writeln!(input, "again").unwrap();
        output.read_line(&mut String::new()).unwrap();
        if let Ok(line) = first.recv_timeout(std::time::Duration::from_millis(100)) {
            break line;
        }
        assert!(std::time::Instant::now() < deadline, "the second one is shown nothing");
    };
    assert_eq!(line, "got again\n");
    writeln!(input, "end").unwrap();
    assert!(running.0.wait().unwrap().success());
    assert!(second.0.wait().unwrap().success());
}

fn forwarded(kubectl: &Kubectl<'_>) {
    let mut forward = kubectl.background(&["port-forward", "web", ":80"]);
    let mut lines = BufReader::new(forward.0.stdout.as_mut().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    // Forwarding from 127.0.0.1:40123 -> 80
    let address = line.split(' ').nth(2).unwrap_or_else(|| panic!("{line:?}"));
    for _ in 0..10 {
        let answer = kubectl.world.netns.run(|| http::get(address, "/")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

async fn python_over_websocket(world: &mut World) {
    if missing("/usr/bin/python3") {
        return;
    }
    let (_, id) = world.pod_with_sleeper("python").await;
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = world.exec_url(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"], OUTPUT).await.unwrap();
        let said = python(world, &url, protocol, "");
        assert_eq!(said["1"], "out\n", "{protocol}: {said}");
        assert_eq!(said["2"], "err\n");
        let status: serde_json::Value = serde_json::from_str(said["3"].as_str().unwrap()).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
        assert_eq!(said["close"], 1000, "{said}");
        let url = world.exec_url(&id, &["head", "-c", "6"], ALL).await.unwrap();
        let said = python(world, &url, protocol, "typed\n");
        assert_eq!(said["1"], "typed\n", "{protocol}: {said}");
    }
}

/// Opens the URL, types `input`, and returns what came by channel.
fn python(world: &World, url: &str, protocol: &str, input: &str) -> serde_json::Value {
    const CLIENT: &str = r#"
import base64, json, sys, websocket
url, protocol, typed = sys.argv[1:]
encoded = "base64" in protocol
socket = websocket.create_connection(url.replace("http", "ws", 1), subprotocols=[protocol], timeout=30)
assert socket.getsubprotocol() == protocol, socket.getsubprotocol()
if typed:
    if encoded:
        socket.send("0" + base64.b64encode(typed.encode()).decode())
    else:
        socket.send_binary(b"\0" + typed.encode())
said = {}
while True:
    kind, data = socket.recv_data(control_frame=True)
    if kind == websocket.ABNF.OPCODE_CLOSE:
        said["close"] = int.from_bytes(data[:2], "big")
        break
    if kind not in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
        continue
    assert (kind == websocket.ABNF.OPCODE_TEXT) == encoded
    channel = chr(data[0]) if encoded else str(data[0])
    text = base64.b64decode(data[1:]) if encoded else data[1:]
    said[channel] = said.get(channel, "") + text.decode()
print(json.dumps(said))
"#;
    let arguments = ["60", "/usr/bin/python3", "-c", CLIENT, url, protocol, input];
    serde_json::from_str(&world.netns.command("timeout", &arguments)).unwrap()
}
