//! Clients that are stuck: connected, but neither reading nor writing any more. `streaming.idle_timeout` ends their sessions, and
//! what these held in the daemon, in the shim and in the pod is free again.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use k8s_cri::v1::ContainerConfig;
use libtest_mimic::Trial;

use super::streaming_exec::gone;
use super::streaming_forward::server;
use crate::support::measure::pids_of;
use crate::support::runtime::Options;
use crate::support::spec::script;
use crate::support::streaming::{ALL, Forward, OUTPUT, Session, Wire};
use crate::support::{World, patience, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let options = Options { streaming: "idle_timeout = \"2s\"".to_owned(), ..Options::default() };
    trials![options = options.clone();
        a_command_whose_output_nobody_reads,
        a_command_whose_input_nobody_takes,
        an_attached_client_that_reads_nothing,
        a_forwarded_connection_that_nobody_reads,
    ]
}

/// The shim may have one more at any time: to the process that waits for the next exec, which it makes when it has nothing else to do.
const WARM: usize = 1;

/// Sockets and pipes of a process. Files of cgroups come and go by themselves.
fn connections(pid: u32) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter(|link| {
            let text = link.to_string_lossy();
            text.starts_with("socket:") || text.starts_with("pipe:") || text.contains("/fifo")
        })
        .count()
}

/// What daemon and shim hold of connections.
struct Held {
    daemon: u32,
    shim: u32,
    before: (usize, usize),
}

impl Held {
    fn by(world: &World, container: &str) -> Self {
        let daemon = world.daemon.pid();
        let shim = pids_of("berth-shim", Path::new(container)).into_iter().min().expect("a shim");
        Self { daemon, shim, before: (connections(daemon), connections(shim)) }
    }

    fn now(&self) -> (usize, usize) {
        (connections(self.daemon), connections(self.shim))
    }

    /// Waits until it is no more than it was.
    async fn is_freed(&self, what: &str) {
        let deadline = within(40);
        loop {
            let now = self.now();
            if now.0 <= self.before.0 && now.1 <= self.before.1 + WARM {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: daemon and shim held {:?}, now {now:?}", self.before);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A first session to its end: what is opened once for all of them is open.
async fn warm_up(world: &World, id: &str) {
    for wire in Wire::EVERY {
        assert_eq!(Session::exec(world, wire, id, &["true"], OUTPUT).await.end().await.exit_code(), 0);
    }
}

async fn a_command_whose_output_nobody_reads(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("unread").await;
    warm_up(world, &id).await;
    let held = Held::by(world, &id);
    let mut sessions = Vec::new();
    for wire in Wire::EVERY {
        sessions.push(Session::exec(world, wire, &id, &["yes", "4321"], OUTPUT).await);
    }
    // Not one of them reads; all stay connected.
    gone(world, &id, "[y]es 4321").await;
    held.is_freed("after output that nobody read").await;
    drop(sessions);
}

async fn a_command_whose_input_nobody_takes(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("untaken").await;
    warm_up(world, &id).await;
    let held = Held::by(world, &id);
    let mut sessions = Vec::new();
    for wire in Wire::EVERY {
        let session = Session::exec(world, wire, &id, &["sleep", "4321"], ALL).await;
        // Until nothing moves any more: more than pipes, queues and sockets hold.
        let flood = vec![b'x'; 64 << 10];
        let deadline = within(60);
        let write = || tokio::time::timeout(Duration::from_secs(1), session.stdin.try_write(&flood));
        while let Ok(Ok(())) = write().await {
            assert!(Instant::now() < deadline, "{wire:?}: it is all taken");
        }
        sessions.push(session);
    }
    gone(world, &id, "[s]leep 4321").await;
    held.is_freed("after input that nobody took").await;
    drop(sessions);
}

/// The container goes on, and so do other clients: only the session that is stuck ends.
async fn an_attached_client_that_reads_nothing(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("attached");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let line = "while true; do head -c 131072 /dev/zero | tr '\\0' x; echo; sleep 0.05; done";
    let config = ContainerConfig { stdin: true, ..script("prints", &image, line) };
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    warm_up(world, &id).await;
    let held = Held::by(world, &id);
    let mut sessions = Vec::new();
    for wire in Wire::EVERY {
        sessions.push(Session::attach(world, wire, &id, OUTPUT).await);
    }
    // They are attached, until nothing moved for too long.
    let deadline = within(40);
    while held.now().1 <= held.before.1 + WARM {
        assert!(Instant::now() < deadline, "nobody is attached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    held.is_freed("after attached clients").await;
    let mut reads = Session::attach(world, Wire::V5, &id, OUTPUT).await;
    reads.stdout.until("xxxx").await;
    drop(sessions);
}

async fn a_forwarded_connection_that_nobody_reads(world: &mut World) {
    let (pod, id) = world.pod_with_sleeper("forwarded").await;
    let (sender, ended) = mpsc::channel();
    server(world, Some(&pod), "127.0.0.1:4000", move |mut stream| {
        // Until the daemon hangs up.
        while stream.write_all(&[b'x'; 64 << 10]).is_ok() {}
        let _ = sender.send(());
    });
    warm_up(world, &id).await;
    let held = Held::by(world, &id);
    let mut stuck = Vec::new();
    for tunnel in [false, true] {
        let mut forward = Forward::open(world, &pod, tunnel).await;
        let pipe = forward.connect(4000).await;
        stuck.push((forward, pipe));
    }
    for _ in &stuck {
        let ended = &ended;
        let waited = tokio::task::block_in_place(|| ended.recv_timeout(patience(40)));
        waited.expect("the connection in the pod is closed");
    }
    held.is_freed("after a forwarded connection").await;
    drop(stuck);
}
