//! Exec sessions: over SPDY and WebSocket, to their regular end and to others.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use tonic::Code;

use crate::support::runtime::Options;
use crate::support::spec::script;
use crate::support::streaming::session::Input;
use crate::support::streaming::{ALL, OUTPUT, Session, Streams, TERMINAL, Wire, spdy_headers, upgrade};
use crate::support::world::assert_code;
use crate::support::{World, container, http, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let mut list = trials![
        output_and_exit_code,
        old_protocols_tell_in_words,
        input_ends_and_output_goes_on,
        both_directions_at_once,
        terminal_with_resize,
        a_command_that_is_not_there,
        a_client_that_goes_ends_the_command,
        a_client_that_goes_while_nobody_reads_its_input,
        the_container_stops_midway,
        a_slow_client_holds_nothing_up,
        many_at_once,
        tokens,
        contradictions,
    ];
    // Ten times what passes between two words of the command: a busy machine is late.
    let options = Options { streaming: "idle_timeout = \"3s\"".to_owned(), ..Options::default() };
    list.extend(trials![options = options; idle_sessions_end]);
    list
}

/// What matches `pattern` in the container's list of processes.
async fn running(world: &World, id: &str, pattern: &str) -> bool {
    world.sh(id, &format!("ps -o args | grep -c '{pattern}' || true")).await != "0"
}

pub(crate) async fn gone(world: &World, id: &str, pattern: &str) {
    let deadline = within(20);
    while running(world, id, pattern).await {
        assert!(Instant::now() < deadline, "{pattern} still runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn output_and_exit_code(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("exec").await;
    for wire in Wire::EVERY {
        for code in [0, 7] {
            let line = format!("echo out; echo err >&2; exit {code}");
            let session = Session::exec(world, wire, &id, &["sh", "-c", &line], OUTPUT).await;
            let ended = session.end().await;
            assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"), "{wire:?}");
            assert_eq!(ended.exit_code(), code, "{wire:?}");
            assert_eq!(ended.status["status"], if code == 0 { "Success" } else { "Failure" });
        }
        let session = Session::exec(world, wire, &id, &["sh", "-c", "kill -9 $$"], OUTPUT).await;
        assert_eq!(session.end().await.exit_code(), 137, "{wire:?}");
        // Only one of the outputs.
        let stderr = Streams { stderr: true, ..Streams::default() };
        let session = Session::exec(world, wire, &id, &["sh", "-c", "echo out; echo err >&2"], stderr).await;
        let ended = session.end().await;
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", "err\n"), "{wire:?}");
    }
}

/// Before version 4 the error channel carries a text, and nothing on success.
async fn old_protocols_tell_in_words(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("old").await;
    let spdy = ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"].map(Wire::Spdy);
    let websocket = ["channel.k8s.io", "base64.channel.k8s.io"].map(Wire::WebSocket);
    for wire in spdy.into_iter().chain(websocket) {
        for (code, expected) in [(0, ""), (5, "command terminated with non-zero exit code: exit status 5")] {
            let line = format!("echo out; exit {code}");
            let mut session = Session::exec(world, wire, &id, &["sh", "-c", &line], OUTPUT).await;
            assert_eq!(session.stdout.rest().await, b"out\n", "{wire:?}");
            assert_eq!(String::from_utf8(session.error.rest().await).unwrap(), expected, "{wire:?}");
        }
    }
}

async fn input_ends_and_output_goes_on(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("input").await;
    let command = ["sh", "-c", "read first; echo got $first; wc -c; sleep 1; echo late; exit 3"];
    for wire in Wire::EVERY {
        let mut session = Session::exec(world, wire, &id, &command, ALL).await;
        session.stdin.write(b"one\n").await;
        session.stdout.until("got one\n").await;
        if !wire.half_closes() {
            // Nothing in these versions ends the input alone: the client goes, and the command sees its end.
            drop(session);
            gone(world, &id, "[w]c -c").await;
            continue;
        }
        session.stdin.write(&vec![b'x'; 300_000]).await;
        session.stdin.close().await;
        let ended = session.end().await;
        assert_eq!(ended.stdout, "300000\nlate\n", "{wire:?}");
        assert_eq!(ended.exit_code(), 3, "{wire:?}");
    }
}

/// 16 MiB there and back, unharmed.
async fn both_directions_at_once(world: &mut World) {
    const LENGTH: usize = 16 << 20;
    let (_, id) = world.pod_with_sleeper("both").await;
    let data: Vec<u8> = (0..LENGTH).map(|index| (index % 251).to_le_bytes()[0]).collect();
    for wire in [Wire::SPDY, Wire::V5] {
        let mut session = Session::exec(world, wire, &id, &["cat"], ALL).await;
        let stdin = session.stdin.clone();
        let (sending, received) = tokio::join!(
            async {
                stdin.write(&data).await;
                stdin.close().await;
            },
            session.stdout.rest()
        );
        let () = sending;
        assert!(received == data, "{wire:?}: {} of {LENGTH} bytes came back, or others", received.len());
        assert_eq!(session.end().await.exit_code(), 0);
    }
}

async fn terminal_with_resize(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("terminal").await;
    for wire in Wire::EVERY {
        let mut session = Session::exec(world, wire, &id, &["sh"], TERMINAL).await;
        session.resize(91, 33).await;
        sized(&mut session.stdout, &session.stdin, "33 91").await;
        session.resize(120, 40).await;
        sized(&mut session.stdout, &session.stdin, "40 120").await;
        session.stdin.write(b"test -t 0 && test -t 1 && test -t 2 && echo 'te''rminal'\n").await;
        session.stdout.until("terminal").await;
        session.stdin.write(b"exit 4\n").await;
        assert_eq!(session.end().await.exit_code(), 4, "{wire:?}");
    }
}

/// A resize goes another way than what is typed: asks until it has come.
async fn sized(stdout: &mut crate::support::streaming::Output, stdin: &Input, size: &str) {
    let deadline = within(10);
    loop {
        stdin.write(b"stty size; echo 'do''ne'\n").await;
        if stdout.until("done").await.contains(size) {
            return;
        }
        assert!(Instant::now() < deadline, "the size does not become {size}");
    }
}

async fn a_command_that_is_not_there(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("unknown").await;
    for wire in Wire::EVERY {
        let ended = Session::exec(world, wire, &id, &["no-such-command"], OUTPUT).await.end().await;
        assert_eq!(ended.status["status"], "Failure");
        assert_eq!(ended.status["reason"], "InternalError");
        assert!(ended.status["message"].as_str().unwrap().contains("no-such-command"), "{ended:?}");
    }
}

async fn a_client_that_goes_ends_the_command(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("left").await;
    for wire in Wire::EVERY {
        for streams in [OUTPUT, ALL, TERMINAL] {
            let line = ["sh", "-c", "echo here; sleep 4321"];
            let mut session = Session::exec(world, wire, &id, &line, streams).await;
            session.stdout.until("here").await;
            drop(session);
            gone(world, &id, "[s]leep 4321").await;
        }
    }
}

/// The end of a connection is seen behind data that waits for the command to read it.
async fn a_client_that_goes_while_nobody_reads_its_input(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("unread").await;
    // A little more than the daemon takes in advance: that much the kernel holds, and the end of the connection after it.
    for (wire, length) in [(Wire::SPDY, 380_000), (Wire::V5, 1_170_000)] {
        let mut session = Session::exec(world, wire, &id, &["sh", "-c", "echo here; sleep 4321"], ALL).await;
        session.stdout.until("here").await;
        session.stdin.write(&vec![b'x'; length]).await;
        drop(session);
        gone(world, &id, "[s]leep 4321").await;
    }
}

async fn the_container_stops_midway(world: &mut World) {
    let pod = world.pod("midway");
    let pod_id = world.run_pod(&pod).await.unwrap();
    for wire in [Wire::SPDY, Wire::V5] {
        let id = world.sleeper(&pod_id, &pod).await;
        let mut session = Session::exec(world, wire, &id, &["sh", "-c", "echo here; sleep 4321"], ALL).await;
        session.stdout.until("here").await;
        world.stop_container(&id, 0).await.unwrap();
        let ended = session.end().await;
        assert_eq!(ended.exit_code(), 137, "{wire:?}: {ended:?}");
        world.remove_container(&id).await.unwrap();
    }
}

/// Neither the container's stop nor other sessions wait for a client that does not read.
async fn a_slow_client_holds_nothing_up(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("slow").await;
    let mut slow = Vec::new();
    for wire in Wire::EVERY {
        slow.push(Session::exec(world, wire, &id, &["yes"], OUTPUT).await);
    }
    for wire in Wire::EVERY {
        let session = Session::exec(world, wire, &id, &["echo", "quick"], OUTPUT).await;
        let ended = tokio::time::timeout(Duration::from_secs(10), session.end()).await.expect("quick");
        assert_eq!(ended.stdout, "quick\n");
    }
    let deadline = within(5);
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    assert!(Instant::now() < deadline, "the end waited for slow clients");
    // Late, but it is told.
    for session in slow {
        assert_eq!(session.end().await.exit_code(), 137);
    }
}

async fn many_at_once(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("many").await;
    let sessions = (0..40).map(|number| {
        let (world, id) = (&*world, &id);
        async move {
            let wire = Wire::EVERY[number % Wire::EVERY.len()];
            let line = format!("sleep 1; echo {number}; exit {number}");
            let ended = Session::exec(world, wire, id, &["sh", "-c", &line], OUTPUT).await.end().await;
            assert_eq!(ended.stdout, format!("{number}\n"));
            assert_eq!(ended.exit_code(), i32::try_from(number).unwrap());
        }
    });
    futures::future::join_all(sessions).await;
}

async fn tokens(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("token").await;
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let token = url.rsplit('/').next().unwrap();
    // 128 bits are 22 characters of base64.
    assert!(token.len() >= 22, "{token}");
    let (server, address) = (url.rsplit_once("/exec/").unwrap().0, url.split('/').nth(2).unwrap());
    assert!(address.starts_with("127.0.0.1:"), "{url}: on loopback unless told otherwise");
    let status = async |url: &str| {
        let headers = spdy_headers("v4.channel.k8s.io");
        upgrade(world.dial(url), url, &headers).await.map_or_else(|answer| answer.status, |_| 101)
    };
    for path in ["/exec/", "/exec/AAAA", "/attach/AAAA", "/portforward/AAAA", "/", "/metrics", "/exec/a/b"] {
        assert_eq!(status(&format!("{server}{path}")).await, 404, "{path}");
    }
    // Used by a request of another kind, it is used all the same.
    assert_eq!(status(&format!("{server}/attach/{token}")).await, 404);
    assert_eq!(status(&url).await, 404);
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    assert_eq!(status(&url).await, 101);
    assert_eq!(status(&url).await, 404, "a token is good once");
    // No upgrade at all, an unknown one, an unknown protocol.
    let get = |url: &str, headers: &[(&str, &str)]| {
        let path = url.strip_prefix(server).unwrap();
        world.netns.run(|| http::request("GET", address, path, headers, &[])).unwrap()
    };
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let answer = get(&url, &[]);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let answer = upgrade(world.dial(&url), &url, &[("Connection", "Upgrade"), ("Upgrade", "h2c")]).await;
    assert_eq!(answer.err().unwrap().status, 400);
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let answer = upgrade(world.dial(&url), &url, &spdy_headers("v77.channel.k8s.io")).await.err().unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.headers.contains_key("x-accepted-stream-protocol-versions"), "{:?}", answer.headers);
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let delete =
        world.netns.run(|| http::request("DELETE", address, &url[server.len()..], &[], &[])).unwrap();
    assert_eq!(delete.status, 405);
}

async fn contradictions(world: &mut World) {
    let pod = world.pod("refused");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.sleeper(&pod_id, &pod).await;
    assert_code(world.exec_url(&id, &["true"], Streams::default()).await, Code::InvalidArgument);
    assert_code(
        world.exec_url(&id, &["true"], Streams { stderr: true, ..TERMINAL }).await,
        Code::InvalidArgument,
    );
    assert_code(world.exec_url(&id, &[], OUTPUT).await, Code::InvalidArgument);
    assert_code(world.exec_url(&"e".repeat(64), &["true"], OUTPUT).await, Code::NotFound);
    assert_code(world.attach_url(&id, Streams::default()).await, Code::InvalidArgument);
    let image = world.image("busybox").await;
    let created =
        world.create(&pod_id, &pod, &container("second", &image, &["echo", "early"])).await.unwrap();
    assert_code(world.exec_url(&created, &["true"], OUTPUT).await, Code::FailedPrecondition);
    // Who attaches before the start misses nothing.
    let early = world.attach_url(&created, OUTPUT).await.unwrap();
    let early = Session::over(world.dial(&early), &early, Wire::SPDY, OUTPUT).await;
    world.start_container(&created).await.unwrap();
    assert_eq!(early.end().await.stdout, "early\n");
    world.wait_exit(&created).await;
    assert_code(world.attach_url(&created, OUTPUT).await, Code::FailedPrecondition);
    // It ended between the call and the session.
    let config = script("short", &image, "sleep 1");
    let short = world.launch(&pod_id, &pod, &config).await.unwrap();
    let url = world.exec_url(&short, &["true"], OUTPUT).await.unwrap();
    world.wait_exit(&short).await;
    let ended = Session::over(world.dial(&url), &url, Wire::SPDY, OUTPUT).await.end().await;
    assert_eq!(ended.status["status"], "Failure");
    assert!(ended.status["message"].as_str().unwrap().contains("running"), "{ended:?}");
    world.stop_pod(&pod_id).await.unwrap();
    assert_code(world.forward_url(&pod_id).await, Code::FailedPrecondition);
    assert_code(world.forward_url(&"e".repeat(64)).await, Code::NotFound);
}

/// Traffic in either direction keeps a session; silence ends it, and the command with it.
async fn idle_sessions_end(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("idle").await;
    for wire in [Wire::SPDY, Wire::V5] {
        let script =
            "i=0; while [ $i -lt 15 ]; do sleep 0.3; echo $i; i=$((i+1)); done; echo over; sleep 4321";
        let line = ["sh", "-c", script];
        let begin = Instant::now();
        let mut session = Session::exec(world, wire, &id, &line, ALL).await;
        session.stdout.until("over").await;
        assert!(begin.elapsed() > Duration::from_secs(4), "{wire:?}: {:?}", begin.elapsed());
        let rest = tokio::time::timeout(Duration::from_secs(60), session.stdout.rest()).await;
        assert!(rest.expect("it ends").trim_ascii().is_empty());
        gone(world, &id, "[s]leep 4321").await;
    }
}
