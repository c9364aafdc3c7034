//! Throughput of pods against the same paths built by hand with `ip`, `bridge` and `nft`: iperf3 over both in one run.
//!
//! A machine that does something else meanwhile disturbs a measurement more than the paths differ. So rounds are short and
//! come in pairs, one over each path right after the other, in turns of who is first; each pair gives a ratio, and the median of
//! these is what counts. Beside it stand the quartiles: how much the pairs themselves differ.
//!
//! | path | from | to |
//! | --- | --- | --- |
//! | bridge | a pod | a pod on the same bridge |
//! | out | a pod | a machine beside the host, by masquerade |
//! | overlay | a pod | a pod on another host, by VXLAN; the hosts are namespaces on one switch |
//!
//! By hand means: with what the path needs to be of the same use. Pods of all three have a way out, so the hosts have a rule that
//! masquerades, as ours have.
//!
//! `cargo run --release -p berth-cni --example throughput_bench [PAIRS [SECONDS [PATH]]]`, as root, with Debian's iperf3,
//! etcd-server, iproute2 and nftables. Everything happens in network namespaces of its own. Where others are at work on the machine,
//! `taskset -c 1 chrt -r 1` before it gives it a processor that nobody interrupts: sender, receiver and the kernel's part between
//! them on one, which is what a path costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    fs::File,
    net::{IpAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use berth_cni::{
    BridgeOptions, Controller, EndpointOptions, NetworkRequest, Options, SandboxSpec,
    model::SubnetOptions,
    overlay::{self, Names, TlsFiles},
};
use nix::sched::{CloneFlags, setns, unshare};

const WAIT: Duration = Duration::from_secs(30);

fn main() {
    let number =
        |index, usual| std::env::args().nth(index).and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (rounds, seconds) = (number(1, 15), number(2, 1));
    let only = std::env::args().nth(3);
    let directory = tempfile::tempdir_in("/run").unwrap();
    let pairs = [bridge_and_out(directory.path()), overlay(directory.path())];
    println!("{rounds} pairs of {seconds} s, medians; ratio: median of the pairs' own (quartiles)");
    println!("{:<10}{:>14}{:>14}{:>9}", "path", "Berth", "by hand", "ratio");
    let wanted = pairs.iter().flat_map(|pair| &pair.paths);
    for (name, ours, by_hand) in wanted.filter(|(name, ..)| only.as_deref().is_none_or(|only| only == *name))
    {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let _servers = [ours, by_hand].map(Stretch::serve);
        // Not counted: neighbours, connections and caches come up.
        for path in [ours, by_hand] {
            path.measure(1);
        }
        for round in 0..rounds {
            // Whoever is second may find a warmer machine.
            let mut turns = [(ours, &mut first), (by_hand, &mut second)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (path, figures) in turns {
                figures.push(path.measure(seconds));
            }
        }
        let ratios: Vec<f64> = first.iter().zip(&second).map(|(ours, by_hand)| ours / by_hand).collect();
        let [low, ratio, high] = quartiles(ratios);
        let [ours, by_hand] = [first, second].map(|figures| quartiles(figures)[1] / 1e9);
        println!("{name:<10}{ours:>9.2} Gb/s{by_hand:>9.2} Gb/s{ratio:>9.3} ({low:.3} to {high:.3})");
    }
}

/// The lower quartile, the median, the upper quartile.
fn quartiles(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| figures[(figures.len() - 1) * quarter / 4])
}

// === Namespaces ===

/// A machine in small.
#[derive(Clone)]
struct Netns(Arc<File>);

impl Netns {
    fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let netns = Self(Arc::new(thread::spawn(open).join().unwrap()));
        netns.sh("ip link set lo up");
        netns
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// Runs on a thread inside; what it starts stays inside.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn sh(&self, lines: &str) {
        let status = self.run(|| Command::new("sh").args(["-ec", lines]).status()).unwrap();
        assert!(status.success(), "{lines}");
    }

    /// A veth pair, with names and addresses of both ends; an empty address is none.
    fn connect(&self, (link, address): (&str, &str), other: &Self, (peer, peer_address): (&str, &str)) {
        self.sh(&format!("ip link add {link} type veth peer name {peer} netns {}", other.path().display()));
        for (netns, link, address) in [(self, link, address), (other, peer, peer_address)] {
            if !address.is_empty() {
                netns.sh(&format!("ip addr add {address} dev {link}"));
            }
            netns.sh(&format!("ip link set {link} up"));
        }
    }
}

// === What is measured ===

/// From one end to the other.
struct Stretch {
    client: Netns,
    server: Netns,
    address: IpAddr,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Stretch {
    /// Starts the receiving end and waits until it is reached.
    fn serve(&self) -> Server {
        let mut command = Command::new("iperf3");
        command.args(["-s", "-B", &self.address.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Server(self.server.run(|| command.spawn()).expect("iperf3 (apt-get install iperf3)"));
        let deadline = Instant::now() + WAIT;
        loop {
            let to = (self.address, 5201).into();
            match self.client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))) {
                Ok(_) => return server,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.address),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Bits a second that arrive.
    fn measure(&self, seconds: u32) -> f64 {
        let mut command = Command::new("iperf3");
        command.args(["-J", "-t", &seconds.to_string(), "-c", &self.address.to_string()]);
        let deadline = Instant::now() + WAIT;
        loop {
            let output = self.client.run(|| command.output()).unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if let Some(figure) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
                return figure;
            }
            // The connection that looked whether it is there may be in its way still.
            assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stdout));
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Pairs of paths, and what keeps them up.
struct Pair {
    paths: Vec<(&'static str, Stretch, Stretch)>,
    _kept: Vec<Host>,
    /// What was made by hand ends with its last user.
    _machines: Vec<Netns>,
    _etcd: Option<Server>,
}

// === Berth's side ===

/// A host with networks; its runtime's threads are in its namespace.
struct Host {
    networks: Controller,
    runtime: tokio::runtime::Runtime,
    pods: Vec<String>,
}

impl Host {
    fn new(netns: &Netns, options: Options) -> Self {
        netns.run(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().unwrap();
            let networks = runtime.block_on(async { Controller::open(options).unwrap() });
            Self { networks, runtime, pods: Vec::new() }
        })
    }

    /// A pod on a network: its namespace and its address.
    fn pod(&mut self, network: &str) -> (Netns, IpAddr) {
        let (netns, id) = (Netns::new(), format!("pod{}", self.pods.len()));
        let endpoint = self.runtime.block_on(async {
            self.networks.create_sandbox(SandboxSpec { id: id.clone(), netns: netns.path() }).await.unwrap();
            self.networks.join(&id, network, EndpointOptions::default()).await.unwrap()
        });
        self.pods.push(id);
        (netns, endpoint.addresses[0].ip())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for id in &self.pods {
            let _ = self.runtime.block_on(self.networks.delete_sandbox(id));
        }
        let _ = self.runtime.block_on(self.networks.remove_all());
    }
}

// === Paths ===

fn bridge_and_out(directory: &Path) -> Pair {
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.connect(("uplink", "192.0.2.1/24"), &outside, ("host", "192.0.2.254/24"));
    netns.sh("ip route add default via 192.0.2.254");
    let bridge = BridgeOptions::new("berth0", ["10.85.0.0/16".parse().unwrap()]);
    let mut host = Host::new(&netns, Options::new(directory.join("bridge.redb"), bridge));
    let (client, _) = host.pod("bridge");
    let (server, address) = host.pod("bridge");
    let ours = Stretch { client: client.clone(), server, address };
    let ours_out = Stretch { client, server: outside, address: "192.0.2.254".parse().unwrap() };

    let (netns, outside) = (Netns::new(), Netns::new());
    netns.connect(("uplink", "192.0.2.1/24"), &outside, ("host", "192.0.2.254/24"));
    netns.sh("ip route add default via 192.0.2.254; sysctl -qw net.ipv4.ip_forward=1
         ip link add br0 type bridge; ip addr add 10.85.0.1/16 dev br0; ip link set br0 up
         nft 'add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; }'
         nft add rule ip nat out ip saddr 10.85.0.0/16 oifname != br0 masquerade");
    let pods = [2, 3].map(|number| {
        let (pod, port) = (Netns::new(), format!("port{number}"));
        netns.connect((&port, ""), &pod, ("eth0", &format!("10.85.0.{number}/16")));
        netns.sh(&format!("ip link set {port} master br0"));
        pod.sh("ip route add default via 10.85.0.1");
        pod
    });
    let [client, server] = pods;
    let by_hand = Stretch { client: client.clone(), server, address: "10.85.0.3".parse().unwrap() };
    let by_hand_out = Stretch { client, server: outside, address: "192.0.2.254".parse().unwrap() };
    let paths = vec![("bridge", ours, by_hand), ("out", ours_out, by_hand_out)];
    Pair { paths, _kept: vec![host], _machines: vec![netns], _etcd: None }
}

/// Two hosts on a switch.
fn switched() -> (Netns, [Netns; 2]) {
    let switch = Netns::new();
    switch.sh("ip link add br0 type bridge; ip addr add 192.0.2.254/24 dev br0; ip link set br0 up");
    let hosts = [1, 2].map(|number| {
        let (host, port) = (Netns::new(), format!("port{number}"));
        host.connect(("uplink", &format!("192.0.2.{number}/24")), &switch, (&port, ""));
        switch.sh(&format!("ip link set {port} master br0"));
        host.sh("ip route add default via 192.0.2.254");
        host
    });
    (switch, hosts)
}

fn etcd(netns: &Netns, directory: &Path) -> Server {
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(directory.join("etcd")).stdout(Stdio::null()).stderr(Stdio::null());
    for option in ["listen-client-urls", "advertise-client-urls"] {
        command.args([format!("--{option}"), "http://192.0.2.254:2379".to_owned()]);
    }
    Server(netns.run(|| command.spawn()).expect("etcd (apt-get install etcd-server)"))
}

fn overlay(directory: &Path) -> Pair {
    let (switch, machines) = switched();
    let etcd = etcd(&switch, directory);
    let mut hosts: Vec<_> = machines
        .iter()
        .enumerate()
        .map(|(number, netns)| {
            let mut options = Options::bare(directory.join(format!("host{number}.redb")));
            options.overlay = Some(overlay::Options {
                endpoints: vec!["http://192.0.2.254:2379".to_owned()],
                prefix: "/berth".to_owned(),
                tls: TlsFiles::default(),
                timeout: Duration::from_secs(3),
                lease: Duration::from_secs(30),
                address: None,
                port: 4789,
                wireguard_port: 51_820,
                host_file: directory.join(format!("host{number}-id")),
            });
            let host = Host::new(netns, options);
            host.runtime.block_on(async { host.networks.serve_overlay(Arc::new(|_| Names::default())) });
            host
        })
        .collect();
    let deadline = Instant::now() + WAIT;
    while !hosts.iter().all(|host| host.networks.overlay_status().is_some_and(|status| status.hosts == 2)) {
        assert!(Instant::now() < deadline, "the hosts do not find each other");
        thread::sleep(Duration::from_millis(50));
    }
    let request = NetworkRequest {
        name: "blue".to_owned(),
        driver: "overlay".to_owned(),
        subnets: vec![SubnetOptions::new("10.90.0.0/24".parse().unwrap())],
        ..NetworkRequest::default()
    };
    hosts[0].runtime.block_on(hosts[0].networks.create(request)).unwrap();
    while hosts[1].networks.network("blue").is_none() {
        assert!(Instant::now() < deadline, "the network does not come to the other host");
        thread::sleep(Duration::from_millis(50));
    }
    let (client, _) = hosts[0].pod("blue");
    let (server, address) = hosts[1].pod("blue");
    let ours = Stretch { client, server, address };

    let (other_switch, machines) = switched();
    let pods: Vec<_> = machines
        .iter()
        .zip([(1, 2), (2, 1)])
        .map(|(host, (own, other))| {
            let pod = Netns::new();
            host.connect(("port", ""), &pod, ("eth0", &format!("10.90.0.{own}/24")));
            pod.sh(&format!("ip link set eth0 address 02:00:00:00:00:0{own} mtu 1450"));
            host.sh(&format!(
                "ip link add br1 type bridge; ip link set br1 mtu 1450 up
                 ip link set port mtu 1450 master br1
                 ip link add vx1 mtu 1450 type vxlan id 7 local 192.0.2.{own} dstport 4789 nolearning
                 ip link set vx1 master br1 up
                 bridge fdb add 00:00:00:00:00:00 dev vx1 dst 192.0.2.{other}
                 sysctl -qw net.ipv4.ip_forward=1; ip addr add 10.90.0.25{own}/24 dev br1
                 {}
                 {}",
                "nft 'add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; }'",
                "nft add rule ip nat out ip saddr 10.90.0.0/24 oifname != br1 masquerade",
            ));
            pod
        })
        .collect();
    let by_hand =
        Stretch { client: pods[0].clone(), server: pods[1].clone(), address: "10.90.0.2".parse().unwrap() };
    Pair {
        paths: vec![("overlay", ours, by_hand)],
        _kept: hosts,
        _machines: machines.into_iter().chain([switch, other_switch]).collect(),
        _etcd: Some(etcd),
    }
}
