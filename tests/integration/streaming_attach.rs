//! Attach sessions: clients at a container's own process.

use std::time::{Duration, Instant};

use k8s_cri::v1::ContainerConfig;
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::spec::script;
use crate::support::streaming::{ALL, OUTPUT, Session, Streams, TERMINAL, Wire, spdy_headers, upgrade};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        input_and_output,
        several_clients,
        coming_and_going,
        after_a_restart,
        without_input,
        input_of_the_first_client_only,
        terminal,
        a_slow_client_holds_nothing_up,
    ]
}

/// Says what it is told, until it is told to end.
const PARROT: &str = "while read line; do [ \"$line\" = end ] && exit 3; echo \"got $line\"; echo \"err $line\" >&2; done; \
                      echo closed; sleep 100000";

fn parrot(image: &str) -> ContainerConfig {
    ContainerConfig { stdin: true, ..script("parrot", image, PARROT) }
}

async fn launch(world: &World, config: impl Fn(&str) -> ContainerConfig) -> String {
    let image = world.image("busybox").await;
    let pod = world.pod("attach");
    let pod_id = world.run_pod(&pod).await.unwrap();
    world.launch(&pod_id, &pod, &config(&image)).await.unwrap()
}

async fn input_and_output(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("talk");
    let pod_id = world.run_pod(&pod).await.unwrap();
    for wire in Wire::EVERY {
        let config = parrot(&image);
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let mut session = Session::attach(world, wire, &id, ALL).await;
        session.stdin.write(b"one\ntwo\n").await;
        session.stdout.until("got two\n").await;
        session.stderr.until("err two\n").await;
        session.stdin.write(b"end\n").await;
        let ended = session.end().await;
        assert_eq!(ended.status["status"], "Success", "{wire:?}: the container's own code is in its status");
        assert_eq!(world.wait_exit(&id).await.exit_code, 3);
        // Two streams: which line comes first of one of each is not said.
        let lines = world.log(&pod, &config);
        let of =
            |stream| lines.iter().filter(move |line| line.stream == stream).map(|line| line.text.as_str());
        assert_eq!(of("stdout").collect::<Vec<_>>(), ["got one", "got two"], "{wire:?}");
        assert_eq!(of("stderr").collect::<Vec<_>>(), ["err one", "err two"], "{wire:?}");
        world.remove_container(&id).await.unwrap();
        std::fs::remove_file(format!("{}/parrot.log", pod.log_directory)).unwrap();
    }
}

/// Everybody sees all, whoever types.
async fn several_clients(world: &mut World) {
    let id = launch(world, parrot).await;
    let mut sessions = Vec::new();
    for wire in Wire::EVERY {
        sessions.push(Session::attach(world, wire, &id, ALL).await);
    }
    sessions.push(Session::attach(world, Wire::SPDY, &id, OUTPUT).await);
    // Nobody has seen anything yet: who is attached is known by what he is shown.
    for (number, typist) in Wire::EVERY.iter().enumerate() {
        sessions[number].stdin.write(format!("from {number}\n").as_bytes()).await;
        for session in &mut sessions {
            let seen = session.stdout.until(&format!("got from {number}\n")).await;
            assert_eq!(seen, format!("got from {number}\n"), "{typist:?}");
            session.stderr.until(&format!("err from {number}\n")).await;
        }
    }
    sessions[0].stdin.write(b"end\n").await;
    for session in sessions {
        assert_eq!(session.end().await.status["status"], "Success");
    }
}

/// Of a client that goes the container notices nothing.
async fn coming_and_going(world: &mut World) {
    let id = launch(world, parrot).await;
    for wire in Wire::EVERY.into_iter().cycle().take(12) {
        let mut session = Session::attach(world, wire, &id, ALL).await;
        session.stdin.write(b"hello\n").await;
        session.stdout.until("got hello\n").await;
        drop(session);
    }
    assert_eq!(
        world.sh(&id, "ps -o args | grep -c '^[s]leep 100000' || true").await,
        "0",
        "its input is open"
    );
}

async fn after_a_restart(world: &mut World) {
    let id = launch(world, parrot).await;
    let mut before = Session::attach(world, Wire::SPDY, &id, ALL).await;
    before.stdin.write(b"before\n").await;
    before.stdout.until("got before\n").await;
    for crash in [true, false] {
        if crash {
            world.crash_and_restart().await;
        } else {
            let mut told = Vec::new();
            for wire in Wire::EVERY {
                told.push(tokio::spawn(Session::attach(world, wire, &id, ALL).await.end()));
            }
            // One that never opens its streams is not waited for.
            let url = world.attach_url(&id, ALL).await.unwrap();
            let headers = spdy_headers("v4.channel.k8s.io");
            let _half_open = upgrade(world.dial(&url), &url, &headers).await.unwrap();
            world.restart().await;
            assert!(!world.daemon.log().contains("still under way"), "{}", world.daemon.log());
            for session in told {
                let status = session.await.unwrap().status;
                assert_eq!(status["reason"], "ServiceUnavailable", "{status}");
                assert!(status["message"].as_str().unwrap().contains("the container runs on"), "{status}");
            }
        }
        for wire in Wire::EVERY {
            let mut session = Session::attach(world, wire, &id, ALL).await;
            session.stdin.write(b"after\n").await;
            session.stdout.until("got after\n").await;
        }
    }
    assert_eq!(before.stdout.rest().await, b"", "the first daemon's client was let go");
}

/// A client that would type into a container without input is shown what it prints.
async fn without_input(world: &mut World) {
    let id = launch(world, |image| script("clock", image, "while true; do echo tick; sleep 0.1; done")).await;
    for wire in Wire::EVERY {
        let mut session = Session::attach(world, wire, &id, ALL).await;
        session.stdin.write(b"nobody reads this\n").await;
        session.stdout.until("tick\n").await;
        if wire.half_closes() {
            session.stdin.close().await;
        }
        session.stdout.until("tick\ntick\n").await;
        // Input alone: there is nothing to show, and the session goes on until the client ends it.
        let input = Streams { stdin: true, ..Streams::default() };
        let session = Session::attach(world, wire, &id, input).await;
        session.stdin.write(b"nor this\n").await;
    }
}

async fn input_of_the_first_client_only(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("once");
    let pod_id = world.run_pod(&pod).await.unwrap();
    for wire in Wire::EVERY {
        let config = ContainerConfig { stdin_once: true, ..parrot(&image) };
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let mut first = Session::attach(world, wire, &id, ALL).await;
        let mut second = Session::attach(world, wire, &id, OUTPUT).await;
        first.stdin.write(b"one\n").await;
        second.stdout.until("got one\n").await;
        if wire.half_closes() {
            first.stdin.close().await;
            first.stdout.until("closed\n").await;
        } else {
            drop(first);
        }
        second.stdout.until("closed\n").await;
        world.remove_container(&id).await.unwrap();
    }
}

async fn terminal(world: &mut World) {
    let id =
        launch(world, |image| ContainerConfig { stdin: true, tty: true, ..script("sh", image, "exec sh") })
            .await;
    for wire in Wire::EVERY {
        let mut session = Session::attach(world, wire, &id, TERMINAL).await;
        session.resize(77, 22).await;
        let deadline = crate::support::within(10);
        loop {
            session.stdin.write(b"stty size; echo 'do''ne'\n").await;
            if session.stdout.until("done").await.contains("22 77") {
                break;
            }
            assert!(Instant::now() < deadline, "{wire:?}: the size does not come");
        }
        session.resize(80, 24).await;
    }
}

/// The container's output, its log, other clients and its stop do not wait for a client that does not read, nor for one
/// whose machine has vanished.
async fn a_slow_client_holds_nothing_up(world: &mut World) {
    const LINES: usize = 60_000;
    let image = world.image("busybox").await;
    let pod = world.pod("slow");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let text = "x".repeat(200);
    // Whoever is behind misses some of it, on a busy machine the quick client as well: the last line is said until it is heard.
    let line = format!(
        "read go; i=0; while [ $i -lt {LINES} ]; do echo {text}; i=$((i+1)); done; while echo last; do sleep 1; done"
    );
    let config = ContainerConfig { stdin: true, ..script("much", &image, &line) };
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let mut slow = Vec::new();
    for wire in Wire::EVERY {
        slow.push(Session::attach(world, wire, &id, OUTPUT).await);
    }
    let mut quick = Session::attach(world, Wire::SPDY, &id, ALL).await;
    quick.stdin.write(b"go\n").await;
    let reading = async {
        let mut tail = String::new();
        while !tail.contains("last\n") {
            let data = quick.stdout.next().await.expect("more output");
            tail.push_str(&String::from_utf8_lossy(&data));
            tail = tail.split_off(tail.len().saturating_sub(300));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("a quick client waits for slow ones");
    let deadline = crate::support::within(10);
    while world.log(&pod, &config).len() <= LINES {
        assert!(Instant::now() < deadline, "the log waits for slow clients");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let deadline = crate::support::within(5);
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    assert!(Instant::now() < deadline, "the end waited for slow clients");
    // What was kept for them ends with whole lines or is cut, but it ends.
    for session in slow {
        let ended = session.end().await;
        assert_eq!(ended.status["status"], "Success");
        assert!(ended.stdout.len() < LINES * 201, "it missed some of it");
    }
}
