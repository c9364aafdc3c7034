//! Times joining and deleting a sandbox with one published port beside 0, 1,000 and 10,000 ports that others have published:
//! the cost of a pod must not depend on how many there are. Prints medians.
//!
//! `cargo run --release -p berth-cni --example ports_bench [ROUNDS]`, as root. Everything happens in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use berth_cni::{BridgeOptions, Controller, EndpointOptions, Options, PortMapping, Protocol, SandboxSpec};
use nix::sched::{CloneFlags, unshare};

fn netns() -> (File, PathBuf) {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    let file = thread::spawn(open).join().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
    (file, path)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn publish(ports: impl Iterator<Item = u16>) -> EndpointOptions {
    let mapping =
        |host_port| PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port, container_port: 80 };
    EndpointOptions { ports: ports.map(mapping).collect(), ..EndpointOptions::default() }
}

async fn join(cni: &Controller, id: &str, netns: PathBuf, options: EndpointOptions) {
    cni.create_sandbox(SandboxSpec { id: id.to_owned(), netns }).await.unwrap();
    cni.join(id, "bridge", options).await.unwrap();
}

fn bench(rounds: usize) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let directory = tempfile::tempdir_in("/run").unwrap();
    let subnets = ["10.85.0.0/16", "fd85:be:27::/64"].map(|subnet| subnet.parse().unwrap());
    let options = Options::new(directory.path().join("leases.redb"), BridgeOptions::new("berth0", subnets));
    let cni = Controller::open(options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut kept = Vec::new();
    println!("{rounds} rounds each, medians");
    println!("published by others      join with a port      delete");
    let mut published = 0_u16;
    for target in [0, 1_000, 10_000] {
        while published < target {
            let more = (target - published).min(1_000);
            let (file, path) = netns();
            let ports = publish((published..published + more).map(|number| 20_000 + number));
            runtime.block_on(join(&cni, &format!("others{published}"), path, ports));
            kept.push(file);
            published += more;
        }
        let (mut joins, mut deletes) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let (file, path) = netns();
            let id = format!("pod{target}-{round}");
            runtime.block_on(async {
                let start = Instant::now();
                join(&cni, &id, path, publish(std::iter::once(9_000))).await;
                joins.push(start.elapsed());
                let start = Instant::now();
                cni.delete_sandbox(&id).await.unwrap();
                deletes.push(start.elapsed());
            });
            kept.push(file);
        }
        println!("{published:>19} {:>21.2?} {:>11.2?}", median(joins), median(deletes));
    }
    runtime.block_on(cni.remove_all()).unwrap();
    drop(kept);
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(51);
    thread::spawn(move || bench(rounds)).join().unwrap();
}
