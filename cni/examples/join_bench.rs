//! Times joining a sandbox to a bridge network against the bare netlink calls that any implementation needs (namespace, veth pair
//! with its peer in place, bridge port, addresses, routes), and against Debian's CNI plugins loopback, bridge with host-local, and
//! portmap, executed one after the other as a runtime does it; all side by side in one run. Prints medians and their ratios, and
//! fails when a join takes longer than is promised: 5 ms, 3 times the bare calls, and a tenth of the plugins' time.
//!
//! `cargo run --release -p berth-cni --example join_bench [ROUNDS]`, as root. Everything happens in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    fs::File,
    io::Write,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use berth_cni::{BridgeOptions, Controller, EndpointOptions, Options, PortMapping, Protocol, SandboxSpec};
use netlink_packet_core::Emitable;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily as Family, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use serde_json::json;

fn netns() -> File {
    let open = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    thread::spawn(open).join().unwrap()
}

/// Joining the default network, SPECIFICATION.md.
const JOIN_MAX: Duration = Duration::from_millis(5);
const RATIO_MAX: u32 = 3;
const PLUGINS_RATIO: u32 = 10;
/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

// === The bare calls ===

struct Bare(std::os::fd::OwnedFd);

impl Bare {
    fn open() -> Self {
        Self(
            socket(Family::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .unwrap(),
        )
    }

    fn call(&self, kind: u16, flags: u16, message: &impl Emitable) {
        let mut bytes = vec![0; 16 + message.buffer_len()];
        message.emit(&mut bytes[16..]);
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | 5).to_ne_bytes());
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap();
        let mut answer = [0; 4096];
        recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
        assert_eq!(error, 0, "message {kind}");
    }

    fn set(&self, index: u32, up: bool, controller: Option<u32>) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.extend(controller.map(LinkAttribute::Controller));
        self.call(16, 0, &message);
    }

    fn address(&self, index: u32, address: IpAddr, prefix: u8) {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix;
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        self.call(20, 0x600, &message);
    }

    fn route(&self, index: u32, gateway: IpAddr) {
        let mut message = RouteMessage::default();
        message.header.address_family =
            if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        message.attributes.push(RouteAttribute::Oif(index));
        self.call(24, 0x600, &message);
    }
}

fn bare_join(host: &Bare, round: u16, bridge: u32) -> File {
    let netns = netns();
    let name = format!("bare{round}");
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName("eth0".into()));
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.clone()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    host.call(16, 0x600, &link);
    let index = if_nametoindex(name.as_str()).unwrap();
    host.set(index, true, Some(bridge));
    thread::scope(|scope| {
        let inside = || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let bare = Bare::open();
            let eth0 = if_nametoindex("eth0").unwrap();
            bare.set(1, true, None);
            bare.set(eth0, true, None);
            let [high, low] = (round + 10).to_be_bytes();
            bare.address(eth0, [10, 99, high, low].into(), 16);
            bare.address(eth0, format!("fd99::{:x}", round + 10).parse().unwrap(), 64);
            bare.route(eth0, [10, 99, 0, 1].into());
            bare.route(eth0, "fd99::1".parse().unwrap());
        };
        scope.spawn(inside).join().unwrap();
    });
    netns
}

// === Debian's plugins ===

fn plugin(
    name: &str,
    netns: &File,
    id: &str,
    interface: &str,
    config: &serde_json::Value,
) -> serde_json::Value {
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
    let mut child = Command::new(format!("{PLUGINS}/{name}"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", path)
        .env("CNI_IFNAME", interface)
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a runtime with Debian's usual configuration does for a pod with one published port.
fn plugins_join(round: u16, leases: &Path) -> File {
    let (netns, id) = (netns(), format!("debian{round}"));
    let config = |kind: &str| json!({"cniVersion": "1.0.0", "name": "debian", "type": kind});
    plugin("loopback", &netns, &id, "lo", &config("loopback"));
    let mut bridge = config("bridge");
    bridge["bridge"] = json!("debian0");
    bridge["isGateway"] = json!(true);
    bridge["ipMasq"] = json!(true);
    bridge["ipam"] = json!({"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.98.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]});
    let result = plugin("bridge", &netns, &id, "eth0", &bridge);
    let mut portmap = config("portmap");
    portmap["runtimeConfig"] =
        json!({"portMappings": [{"hostPort": 30_000 + round, "containerPort": 80, "protocol": "tcp"}]});
    portmap["prevResult"] = result;
    plugin("portmap", &netns, &id, "eth0", &portmap);
    netns
}

// === Side by side ===

fn bench(rounds: u16) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let directory = tempfile::tempdir_in("/run").unwrap();
    let subnets = ["10.85.0.0/16", "fd85:be:27::/64"].map(|subnet| subnet.parse().unwrap());
    let options = Options::new(directory.path().join("leases.redb"), BridgeOptions::new("berth0", subnets));
    let cni = Controller::open(options).unwrap();
    let host = Bare::open();
    let mut bridge = LinkMessage::default();
    bridge.attributes.push(LinkAttribute::IfName("bare".into()));
    bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    host.call(16, 0x600, &bridge);
    let bridge = if_nametoindex("bare").unwrap();
    host.set(bridge, true, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut bare, mut create, mut join, mut published, mut delete) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut plugins = Vec::new();
    let has_plugins = Path::new(PLUGINS).join("portmap").exists();
    let mut kept = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        let netns_bare = bare_join(&host, round, bridge);
        bare.push(start.elapsed());
        kept.push(netns_bare);
        // They are slow: every fifth round is enough.
        if has_plugins && round % 5 == 0 {
            let start = Instant::now();
            let netns = plugins_join(round, directory.path());
            plugins.push(start.elapsed());
            kept.push(netns);
        }
        for ports in [false, true] {
            let start = Instant::now();
            let netns = netns();
            let made = start.elapsed();
            let id = format!("pod{round}-{ports}");
            let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
            let mapping = PortMapping {
                protocol: Protocol::Tcp,
                host_ip: None,
                host_port: 20_000 + round,
                container_port: 80,
            };
            let ports_wanted = if ports { vec![mapping] } else { vec![] };
            let options = EndpointOptions { ports: ports_wanted, ..EndpointOptions::default() };
            runtime.block_on(async {
                let start = Instant::now();
                cni.create_sandbox(SandboxSpec { id: id.clone(), netns: path }).await.unwrap();
                let created = start.elapsed();
                cni.join(&id, "bridge", options).await.unwrap();
                let both = start.elapsed();
                if ports {
                    published.push(made + both);
                } else {
                    create.push(created);
                    join.push(made + both);
                }
                if round % 2 == 0 {
                    let start = Instant::now();
                    cni.delete_sandbox(&id).await.unwrap();
                    delete.push(start.elapsed());
                }
            });
            kept.push(netns);
        }
    }
    runtime.block_on(cni.remove_all()).unwrap();
    drop(kept);
    let (bare, join, published) = (median(bare), median(join), median(published));
    println!("{rounds} rounds, medians, all including the namespace");
    println!("bare netlink calls              {bare:>10.2?}");
    println!(
        "create_sandbox + join           {join:>10.2?}   {:.2} x bare",
        join.as_secs_f64() / bare.as_secs_f64()
    );
    println!(
        "  … with a published port       {published:>10.2?}   {:.2} x bare",
        published.as_secs_f64() / bare.as_secs_f64()
    );
    println!("  of which create_sandbox       {:>10.2?}", median(create));
    println!("delete_sandbox                  {:>10.2?}", median(delete));
    let mut kept_promise = join <= JOIN_MAX && join <= RATIO_MAX * bare;
    if plugins.is_empty() {
        println!(
            "Debian's plugins                 are not here (apt-get install containernetworking-plugins)"
        );
    } else {
        let plugins = median(plugins);
        println!(
            "Debian's plugins, with a port   {plugins:>10.2?}   {:.1} x join with a port",
            plugins.as_secs_f64() / published.as_secs_f64()
        );
        kept_promise &= published * PLUGINS_RATIO <= plugins;
    }
    if !kept_promise {
        eprintln!(
            "slower than promised: at most {JOIN_MAX:.2?}, {RATIO_MAX} times the bare calls, 1/{PLUGINS_RATIO} of the plugins"
        );
        std::process::exit(1);
    }
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(101);
    thread::spawn(move || bench(rounds)).join().unwrap();
}
