//! Thousands of sessions and execs, after which daemon and shim hold what they held before.
//!
//! `BERTH_TEST_SESSIONS` and `BERTH_TEST_EXECS` say how many; the promises are 10,000 and 100,000.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_cri::v1::ContainerConfig;
use libtest_mimic::Trial;
use tokio::io::AsyncWriteExt;

use crate::support::measure::{anonymous, descriptors, pids_of, processes};
use crate::support::runtime::Options;
use crate::support::spec::script;
use crate::support::streaming::{ALL, Forward, OUTPUT, Session, TERMINAL, Wire, spdy_headers, upgrade};
use crate::support::{World, patience};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let options = Options { limit: 3600, ..Options::default() };
    trials![options = options.clone(); sessions, execs]
}

/// How many: as the environment says, or `default`, and less of that on an emulated machine.
fn count(variable: &str, default: usize) -> usize {
    let emulated = usize::try_from(patience(1).as_secs()).unwrap().max(1);
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default / emulated)
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    kib: usize,
    descriptors: usize,
    threads: usize,
}

fn held(pid: u32) -> Held {
    let count = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).map_or(0, Iterator::count);
    Held { kib: anonymous(pid), descriptors: descriptors(pid), threads: count("task") }
}

/// Waits until descriptors and processes are what they were, and threads no more; compares memory, which may have grown by
/// `growth` KiB.
async fn settles(what: &str, pid: u32, before: Held, growth: usize) {
    let deadline = Instant::now() + patience(30);
    loop {
        let now = held(pid);
        let same = now.descriptors <= before.descriptors && now.threads <= before.threads + 1;
        if same && now.kib <= before.kib + growth {
            println!("{what}: {before:?}, afterwards {now:?}");
            return;
        }
        assert!(Instant::now() < deadline, "{what} held {before:?}, now {now:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn same_processes(before: usize) {
    let deadline = Instant::now() + patience(30);
    while processes().len() > before {
        assert!(Instant::now() < deadline, "{before} processes before, now {}", processes().len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Place<'a> {
    world: &'a World,
    pod: &'a str,
    container: &'a str,
}

/// Says what it is told, and reads on whatever comes.
const PARROT: &str = "while true; do read line && echo \"got $line\"; done";

async fn sessions(world: &mut World) {
    let number = count("BERTH_TEST_SESSIONS", 2_000);
    let image = world.image("busybox").await;
    let config = world.pod("soak");
    let pod = world.run_pod(&config).await.unwrap();
    let parrot = ContainerConfig { stdin: true, ..script("parrot", &image, PARROT) };
    let container = world.launch(&pod, &config, &parrot).await.unwrap();
    super::streaming_forward::server(world, Some(&pod), "127.0.0.1:4000", super::streaming_forward::echo);
    let place = Place { world, pod: &pod, container: &container };
    let kinds = AtomicUsize::new(0);
    let run = async |number: usize| {
        let run = async |_| session(&place, kinds.fetch_add(1, Ordering::Relaxed)).await;
        futures::stream::iter(0..number).map(run).buffer_unordered(8).collect::<Vec<()>>().await;
    };
    // A token that nobody comes for, until it has expired.
    let (unused, made) = (world.exec_url(&container, &["true"], OUTPUT).await.unwrap(), Instant::now());
    run(300).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let daemon = world.daemon.pid();
    let shim = pids_of("berth-shim", Path::new(&container)).into_iter().min().expect("a shim");
    let (daemon_before, shim_before, processes_before) = (held(daemon), held(shim), processes().len());
    let begin = Instant::now();
    run(number).await;
    println!("{number} sessions in {:?}", begin.elapsed());
    settles("the daemon", daemon, daemon_before, 8 << 10).await;
    settles("the shim", shim, shim_before, 512).await;
    same_processes(processes_before).await;
    assert_eq!(
        world.sh(&container, "ps -o args | grep -v -e ps -e grep -e sh -e '^COMMAND' || true").await,
        ""
    );
    tokio::time::sleep((made + Duration::from_secs(62)).saturating_duration_since(Instant::now())).await;
    let late = upgrade(world.dial(&unused), &unused, &spdy_headers("v4.channel.k8s.io")).await;
    assert_eq!(late.err().map(|answer| answer.status), Some(404), "the token has expired");
}

/// One session of many kinds, to its end or given up.
async fn session(place: &Place<'_>, kind: usize) {
    let Place { world, pod, container } = place;
    let wire = Wire::EVERY[kind / 11 % Wire::EVERY.len()];
    match kind % 11 {
        0 | 1 => {
            let ended = Session::exec(world, wire, container, &["echo", "out"], OUTPUT).await.end().await;
            assert_eq!(ended.stdout, "out\n");
        }
        2 | 3 => {
            let session = Session::exec(world, wire, container, &["head", "-c", "6"], ALL).await;
            session.stdin.write(b"typed\n").await;
            assert_eq!(session.end().await.stdout, "typed\n");
        }
        4 => {
            let mut session = Session::exec(world, wire, container, &["sh"], TERMINAL).await;
            session.resize(80, 24).await;
            session.stdin.write(b"exit 5\n").await;
            while session.stdout.next().await.is_some() {}
            assert_eq!(session.end().await.exit_code(), 5);
        }
        // Given up midway: quiet, while it prints, before it began.
        5 => {
            let mut session =
                Session::exec(world, wire, container, &["sh", "-c", "echo here; sleep 4321"], ALL).await;
            session.stdout.until("here").await;
        }
        6 => {
            let mut session = Session::exec(world, wire, container, &["yes"], OUTPUT).await;
            session.stdout.next().await.expect("output");
        }
        7 => {
            let url = world.exec_url(container, &["sleep", "4321"], OUTPUT).await.unwrap();
            if kind.is_multiple_of(2) {
                let _ = upgrade(world.dial(&url), &url, &spdy_headers("v4.channel.k8s.io")).await;
            } else {
                let path = url.rsplit_once('/').unwrap().1;
                let _ = world
                    .dial(&url)
                    .write_all(format!("POST /exec/{path} HTTP/1.1\r\n\r\n").as_bytes())
                    .await;
            }
        }
        8 => {
            let mut session = Session::attach(world, wire, container, ALL).await;
            let said = format!("number {kind}.");
            session.stdin.write(format!("{said}\n").as_bytes()).await;
            session.stdout.until(&said).await;
        }
        9 => drop(Session::attach(world, wire, container, OUTPUT).await),
        _ => {
            let mut forward = Forward::open(world, pod, (kind / 11).is_multiple_of(2)).await;
            for _ in 0..2 {
                let mut pipe = forward.connect(4000).await;
                pipe.input.write(b"hello.").await.unwrap();
                pipe.output.until("hello.").await;
                if !kind.is_multiple_of(3) {
                    pipe.input.close().await;
                    pipe.output.rest().await;
                }
            }
        }
    }
}

/// A shim after a life of probes.
async fn execs(world: &mut World) {
    let number = count("BERTH_TEST_EXECS", 3_000);
    let (_, id) = world.pod_with_sleeper("probed").await;
    let failures = AtomicUsize::new(0);
    let run = async |number: usize| {
        let run = async |index: usize| {
            let code = i32::from(index.is_multiple_of(16));
            let answer = world.exec_sync(&id, &["sh", "-c", &format!("echo ready; exit {code}")], 60).await;
            if !answer.is_ok_and(|answer| answer.exit_code == code && answer.stdout == b"ready\n") {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        };
        futures::stream::iter(0..number).map(run).buffer_unordered(4).collect::<Vec<()>>().await;
    };
    run(200).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let daemon = world.daemon.pid();
    let shim = pids_of("berth-shim", Path::new(&id)).into_iter().min().expect("a shim");
    let (daemon_before, shim_before, processes_before) = (held(daemon), held(shim), processes().len());
    let begin = Instant::now();
    run(number).await;
    println!("{number} execs in {:?}", begin.elapsed());
    assert_eq!(failures.load(Ordering::Relaxed), 0, "execs failed");
    settles("the shim", shim, shim_before, 256).await;
    settles("the daemon", daemon, daemon_before, 6 << 10).await;
    same_processes(processes_before).await;
}
