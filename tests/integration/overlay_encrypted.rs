//! Encrypted overlays, where the kernel has WireGuard: pods talk, and nobody between the hosts reads it or joins in. Beside each
//! an overlay that is not encrypted shows that what is looked for would be found.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Underlay, eventually, trial};
use crate::overlay_pods::{Pod, ask, ask_udp, everywhere, has_wireguard, reaches};
use crate::support::netns::Netns;
use crate::support::{World, patience};

const VXLAN: u16 = 4_789;
const WIREGUARD: u16 = 51_820;
const PORT: u16 = 81;

pub(crate) fn trials() -> Vec<Trial> {
    const NAME: &str = "overlay::encrypted_networks_are_read_by_nobody_between";
    if has_wireguard() {
        return vec![trial(NAME, 2, Underlay::V4, encrypted_networks_are_read_by_nobody_between)];
    }
    vec![Trial::test(NAME, || {
        println!("skipped: this kernel makes no WireGuard device");
        Ok(())
    })]
}

async fn encrypted_networks_are_read_by_nobody_between(cluster: &mut Cluster) {
    let create = ["network", "create", "-d", "overlay"];
    let secret = ["-o", "encrypted", "--subnet", "10.98.0.0/24", "-o", "vni=5001", "secret"];
    let plain = ["--subnet", "10.99.0.0/24", "-o", "vni=5002", "plain"];
    cluster.hosts[0].berth_ok(&[&create[..], &secret].concat());
    cluster.hosts[1].berth_ok(&[&create[..], &plain].concat());
    let (mut secrets, mut plains) = (Vec::new(), Vec::new());
    for network in ["secret", "plain"] {
        everywhere(cluster, network);
    }
    for (number, world) in cluster.hosts.iter().enumerate() {
        for (network, pods) in [("secret", &mut secrets), ("plain", &mut plains)] {
            let name = format!("{network}{number}");
            let pod = world.overlay_pod(&name, &json!({"name": network})).await;
            pod.serve(80, &name);
            pods.push(pod);
        }
    }
    // They talk: 1500 of the underlay, less 60 of WireGuard, less 70 of VXLAN over IPv6.
    for (from, to) in [(0, 1), (1, 0)] {
        reaches(&secrets[from].netns, &secrets[to], 80, &format!("secret{to}"));
        let at = SocketAddr::new(secrets[to].addresses[0], 80);
        let answer = eventually("much is sent", || ask(&secrets[from].netns, at, 300_000));
        assert!(answer.ends_with(" 300000"), "{answer}");
        let own = secrets[from].addresses[0];
        let answered =
            eventually("a full datagram comes back", || ask_udp(&secrets[from].netns, own, at, 1370 - 28));
        assert_eq!(answered, 1370 - 28);
        assert!(secrets[from].netns.ip("-o link show eth0").contains("mtu 1370"));
    }
    assert_eq!(cluster.hosts[0].inspect_network("secret")["options"]["encrypted"], "true");

    what_is_between_is_not_readable(cluster, &secrets, &plains);
    a_stranger_is_not_heard(cluster, &secrets[0], &plains[0]);
    another_key_is_told(cluster, &secrets).await;
    a_host_that_is_gone_is_no_peer(cluster, &secrets).await;

    for world in &cluster.hosts {
        for pod in world.list_pods().await.unwrap() {
            world.remove_pod(&pod.id).await.unwrap();
        }
    }
    eventually("the network is removed", || {
        let output = cluster.hosts[1].berth(&["network", "rm", "secret"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    for world in &cluster.hosts {
        eventually("no tunnel is left", || {
            let links = world.netns.ip("-o link");
            if links.contains("wg-") { Err(links) } else { Ok(()) }
        });
    }
}

// === Listening ===

/// What a machine between the hosts sees.
struct Tap {
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    done: Arc<AtomicBool>,
}

impl Tap {
    fn new(netns: &Netns) -> Self {
        let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
        let socket = netns.run(open).unwrap();
        let wait = nix::sys::time::TimeVal::new(0, 100_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait).unwrap();
        let (seen, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, end) = (Arc::clone(&seen), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                if let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    kept.lock().unwrap().push(buffer[..length].to_vec());
                }
            }
        });
        Self { seen, done }
    }

    fn saw(&self, marker: &[u8]) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.iter().any(|frame| frame.windows(marker.len()).any(|part| part == marker))
    }

    /// Packets over UDP to a port.
    fn to_port(&self, port: u16) -> usize {
        const UDP: u8 = 17;
        let seen = self.seen.lock().unwrap();
        let is_udp = |frame: &&Vec<u8>| frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&UDP);
        // Ethernet and IPv4 without options: the UDP header begins at 34.
        seen.iter().filter(is_udp).filter(|frame| frame.get(36..38) == Some(&port.to_be_bytes())).count()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

fn listener(pod: &Pod) -> UdpSocket {
    let socket = pod.netns.run(|| UdpSocket::bind((pod.addresses[0], PORT))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Sends until it arrives.
fn deliver(from: &Pod, to: &Pod, at: &UdpSocket, marker: &[u8]) {
    let sender = from.netns.run(|| UdpSocket::bind((from.addresses[0], 0))).unwrap();
    eventually("the marker arrives", || {
        sender.send_to(marker, (to.addresses[0], PORT)).map_err(|error| error.to_string())?;
        let mut buffer = [0; 2048];
        let length = at.recv(&mut buffer).map_err(|error| error.to_string())?;
        if &buffer[..length] == marker { Ok(()) } else { Err("something else arrived".to_owned()) }
    });
}

fn what_is_between_is_not_readable(cluster: &Cluster, secrets: &[Pod], plains: &[Pod]) {
    let tap = Tap::new(&cluster.switch);
    let readable = b"this text is readable between the hosts";
    deliver(&plains[0], &plains[1], &listener(&plains[1]), readable);
    eventually("what is not encrypted is seen", || {
        if tap.saw(readable) && tap.to_port(VXLAN) > 0 { Ok(()) } else { Err("nothing yet".to_owned()) }
    });
    drop(tap);
    let tap = Tap::new(&cluster.switch);
    let hidden = b"this text is for the two pods alone, and long enough";
    let at = listener(&secrets[1]);
    for _ in 0..5 {
        deliver(&secrets[0], &secrets[1], &at, hidden);
    }
    eventually("packets of the tunnel are seen", || {
        if tap.to_port(WIREGUARD) >= 5 { Ok(()) } else { Err(format!("{}", tap.to_port(WIREGUARD))) }
    });
    assert!(!tap.saw(hidden), "the marker is readable between the hosts");
    assert_eq!(tap.to_port(VXLAN), 0, "VXLAN beside the tunnel");
}

// === Joining in ===

/// A VXLAN packet with a datagram to a pod (RFC 7348, 5; RFC 791; RFC 768).
fn forged(vni: u32, mac: [u8; 6], to: Ipv4Addr, text: &[u8]) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(mac);
    packet.extend([2, 0, 0, 0, 0, 0x99, 8, 0]);
    let length = u16::try_from(28 + text.len()).unwrap();
    let [a, b, c, _] = to.octets();
    let mut header =
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0, a, b, c, 250], &to.octets()]
            .concat();
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = !u16::try_from(sum).unwrap();
    header[10..12].copy_from_slice(&folded.to_be_bytes());
    packet.extend(header);
    packet.extend(PORT.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    // No checksum.
    packet.extend([0, 0]);
    packet.extend(text);
    packet
}

fn a_stranger_is_not_heard(cluster: &Cluster, secret: &Pod, plain: &Pod) {
    let world = &cluster.hosts[0];
    let inner = |pod: &Pod| match pod.addresses[0] {
        IpAddr::V4(address) => (address, {
            let [a, b, c, d] = address.octets();
            [0x0a, 0x58, a, b, c, d]
        }),
        IpAddr::V6(_) => unreachable!(),
    };
    // The host's addresses on the underlay: the one of VXLAN, and the link-local one that every interface has.
    let text = world.netns.ip("-6 -o addr show dev uplink scope link");
    let local = text
        .split_whitespace()
        .find(|word| word.starts_with("fe80"))
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let v4: SocketAddr = format!("192.0.2.1:{VXLAN}").parse().unwrap();
    let links: Value = serde_json::from_str(&cluster.switch.ip("-j link show br0")).unwrap();
    let index = u32::try_from(links[0]["ifindex"].as_u64().unwrap()).unwrap();
    let v6 = SocketAddr::from(std::net::SocketAddrV6::new(local.parse().unwrap(), VXLAN, 0, index));
    let (one, other) =
        cluster.switch.run(|| (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap()));
    let send = |vni: u32, pod: &Pod, text: &[u8]| {
        let (address, mac) = inner(pod);
        let packet = forged(vni, mac, address, text);
        one.send_to(&packet, v4).unwrap();
        other.send_to(&packet, v6).unwrap();
    };
    let forgery = b"from nobody";
    let at = listener(plain);
    eventually("without encryption a stranger is heard", || {
        send(5002, plain, forgery);
        let mut buffer = [0; 64];
        at.recv(&mut buffer).map(drop).map_err(|error| error.to_string())
    });
    let at = listener(secret);
    for _ in 0..50 {
        send(5001, secret, forgery);
    }
    let mut buffer = [0; 64];
    let heard = at.recv(&mut buffer);
    assert!(heard.is_err(), "a stranger's packet came into an encrypted network");
}

// === Keys ===

/// A host's public key, as its record in etcd has it.
fn told(cluster: &Cluster, address: &str) -> String {
    let text = cluster.etcd.ctl(&["get", "--prefix", "/berth/overlay/hosts/", "--print-value-only"]);
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_host = records.filter(|record| record["address"] == address);
    of_host.next_back().unwrap_or_default()["tunnel"]["public_key"].as_str().unwrap_or_default().to_owned()
}

fn device(world: &World) -> Result<String, String> {
    let links = world.netns.ip("-o link");
    let name = links.split(": ").find(|word| word.starts_with("wg-")).map(str::to_owned);
    name.ok_or(links)
}

/// What WireGuard's own tool says of a host's peers: keys, where they are, what they may send.
fn peers(world: &World, what: &str) -> Result<String, String> {
    let device = device(world)?;
    let show = || std::process::Command::new("wg").args(["show", &device, what]).output();
    let output =
        world.netns.run(show).map_err(|error| format!("wg (apt-get install wireguard-tools): {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A host's only peer is another one, by the key that it told.
fn knows(cluster: &Cluster, host: usize, other: &str) {
    eventually("the other host is the only peer", || {
        let (found, key) = (peers(&cluster.hosts[host], "peers")?, told(cluster, other));
        if found == key && !key.is_empty() { Ok(()) } else { Err(format!("{found:?}, not {key:?}")) }
    });
}

async fn another_key_is_told(cluster: &mut Cluster, pods: &[Pod]) {
    knows(cluster, 0, "192.0.2.2");
    knows(cluster, 1, "192.0.2.1");
    let [endpoint, allowed] =
        ["endpoints", "allowed-ips"].map(|what| peers(&cluster.hosts[0], what).unwrap());
    assert!(endpoint.ends_with("\t192.0.2.2:51820"), "{endpoint}");
    assert!(allowed.contains("\tfe80:") && allowed.ends_with("/128"), "one address and no other: {allowed}");
    let old = told(cluster, "192.0.2.2");
    assert_eq!(old.len(), 44, "a key in base64: {old}");
    // The device is lost, and the network's with it: nothing takes another way.
    let tap = Tap::new(&cluster.switch);
    let name = device(&cluster.hosts[1]).unwrap();
    cluster.hosts[1].daemon.kill();
    cluster.hosts[1].netns.ip(&format!("link del {name}"));
    let lost = b"this text is sent while there is no tunnel to take it";
    let sender = pods[1].netns.run(|| UdpSocket::bind((pods[1].addresses[0], 0))).unwrap();
    for _ in 0..50 {
        let _ = sender.send_to(lost, (pods[0].addresses[0], PORT));
    }
    cluster.hosts[1].daemon.spawn();
    cluster.hosts[1].ready().await;
    eventually("another key is told", || {
        let new = told(cluster, "192.0.2.2");
        if new.len() == 44 && new != old { Ok(()) } else { Err(new) }
    });
    reaches(&pods[0].netns, &pods[1], 80, "secret1");
    reaches(&pods[1].netns, &pods[0], 80, "secret0");
    // And while the daemon runs.
    let (old, name) = (told(cluster, "192.0.2.1"), device(&cluster.hosts[0]).unwrap());
    cluster.hosts[0].netns.ip(&format!("link del {name}"));
    tokio::time::timeout(patience(30), async {
        while [old.as_str(), ""].contains(&told(cluster, "192.0.2.1").as_str()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("another key is told");
    knows(cluster, 1, "192.0.2.1");
    knows(cluster, 0, "192.0.2.2");
    reaches(&pods[0].netns, &pods[1], 80, "secret1");
    reaches(&pods[1].netns, &pods[0], 80, "secret0");
    assert!(!tap.saw(lost), "sent beside the tunnel");
    assert_eq!(tap.to_port(VXLAN), 0, "VXLAN beside the tunnel");
}

/// A host whose lease ended may not talk through the tunnel any more, and may again when it is back.
async fn a_host_that_is_gone_is_no_peer(cluster: &mut Cluster, pods: &[Pod]) {
    cluster.hosts[1].daemon.kill();
    eventually("a host that is gone is no peer", || {
        let found = peers(&cluster.hosts[0], "peers")?;
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    let answer = ask(&pods[0].netns, SocketAddr::new(pods[1].addresses[0], 80), 1);
    assert!(answer.is_err(), "its pods are not reached: {answer:?}");
    cluster.hosts[1].daemon.spawn();
    cluster.hosts[1].ready().await;
    knows(cluster, 0, "192.0.2.2");
    reaches(&pods[0].netns, &pods[1], 80, "secret1");
    reaches(&pods[1].netns, &pods[0], 80, "secret0");
}
