//! What tests of overlays have in common: pods on them, sockets in those pods, and questions to their resolvers.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};
use crate::support::World;
use crate::support::netns::Netns;

// === A pod and its sockets ===

pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    pub(crate) addresses: Vec<IpAddr>,
}

impl World {
    pub(crate) async fn overlay_pod(&self, name: &str, network: &Value) -> Pod {
        self.try_overlay_pod(name, network).await.unwrap_or_else(|status| panic!("{name}: {status:?}"))
    }

    pub(crate) async fn try_overlay_pod(&self, name: &str, network: &Value) -> Result<Pod, tonic::Status> {
        let mut config = self.pod(name);
        config.annotations.insert("berth.dev/networks".into(), json!([network]).to_string());
        let id = self.run_pod(&config).await?;
        let status = self.pod_status(&id).await?.network.unwrap();
        let more = status.additional_ips.iter().map(|ip| ip.ip.as_str());
        let addresses = std::iter::once(status.ip.as_str()).chain(more).map(|text| text.parse().unwrap());
        let netns = Netns::open(&self.daemon.state.join("pods").join(&id).join("ns/net"));
        Ok(Pod { addresses: addresses.collect(), id, netns })
    }

    /// Whether a metric of overlays is so; else what it is.
    pub(crate) fn overlay_metric(&self, name: &str, wanted: f64) -> Result<(), String> {
        let now = self.metric(&format!("berth_overlay_{name}")).unwrap_or_default();
        if (now - wanted).abs() < 0.5 { Ok(()) } else { Err(format!("{name} is {now}")) }
    }
}

impl Pod {
    /// Answers one connection on a port with the pod's name and what was sent, for as long as the test lives.
    pub(crate) fn serve(&self, port: u16, name: &str) {
        for address in &self.addresses {
            let (tcp, udp) = self.netns.run(|| {
                let at = SocketAddr::new(*address, port);
                (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())
            });
            let name = name.to_owned();
            std::thread::spawn({
                let name = name.clone();
                move || {
                    for stream in tcp.incoming() {
                        let Ok(mut stream) = stream else { return };
                        let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                        let mut sent = Vec::new();
                        if stream.read_to_end(&mut sent).is_ok() {
                            let _ = writeln!(stream, "{name} {peer} {}", sent.len());
                        }
                    }
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                    let mut answer = buffer[..length].to_vec();
                    let bytes = name.len().min(length);
                    answer[..bytes].copy_from_slice(&name.as_bytes()[..bytes]);
                    let _ = udp.send_to(&answer, peer);
                }
            });
        }
    }
}

/// One exchange over TCP: so many bytes there, a line back.
pub(crate) fn ask(from: &Netns, to: SocketAddr, bytes: usize) -> Result<String, String> {
    from.run(|| {
        let work = || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.set_write_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(&vec![b'x'; bytes])?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer.trim_end().to_owned())
        };
        work().map_err(|error| format!("{to}: {error}"))
    })
}

/// One datagram there and back, as large as the interface takes.
pub(crate) fn ask_udp(from: &Netns, own: IpAddr, to: SocketAddr, bytes: usize) -> Result<usize, String> {
    from.run(|| {
        let work = || {
            let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(&vec![b'x'; bytes], to)?;
            socket.recv(&mut [0; 2048])
        };
        work().map_err(|error: std::io::Error| format!("{to} {bytes} bytes: {error}"))
    })
}

pub(crate) fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.addresses[0], port)
}

/// The pod is reached from there, and it is this one.
pub(crate) fn reaches(from: &Netns, to: &Pod, port: u16, name: &str) {
    eventually("the pod is reached", || {
        let answer = ask(from, at(to, port), 1)?;
        if answer.starts_with(&format!("{name} ")) { Ok(()) } else { Err(answer) }
    });
}

/// Every host has the network.
pub(crate) fn everywhere(cluster: &Cluster, network: &str) {
    for world in &cluster.hosts {
        eventually("the network is on every host", || {
            let names = world.berth_ok(&["network", "ls", "-q"]);
            if names.lines().any(|line| line == network) { Ok(()) } else { Err(names) }
        });
    }
}

pub(crate) fn refused(world: &World, arguments: &[&str]) -> String {
    let output = world.berth(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

// === Names ===

pub(crate) const PTR: u8 = 12;
pub(crate) const SRV: u8 = 33;

/// What the pod's resolver answers to a question: names for PTR, ports and names for SRV (RFC 1035, section 4; RFC 2782).
pub(crate) fn resolve(from: &Netns, name: &str, kind: u8) -> Result<Vec<String>, String> {
    let (question, answer) = question(from, name, kind)?;
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let mut at = question;
    let mut found = Vec::new();
    for _ in 0..count {
        at = name_at(&answer, at).1;
        let length = usize::from(u16::from_be_bytes([answer[at + 8], answer[at + 9]]));
        let data = at + 10;
        found.push(if kind == SRV {
            let port = u16::from_be_bytes([answer[data + 4], answer[data + 5]]);
            format!("{port} {}", name_at(&answer, data + 6).0)
        } else {
            name_at(&answer, data).0
        });
        at = data + length;
    }
    Ok(found)
}

/// A name, which may go on elsewhere, and where what follows it begins.
fn name_at(message: &[u8], mut at: usize) -> (String, usize) {
    let (mut labels, mut end) = (Vec::new(), None);
    loop {
        let length = usize::from(message[at]);
        match length {
            0 => return (labels.join("."), end.unwrap_or(at + 1)),
            0xc0.. => {
                end = end.or(Some(at + 2));
                at = (length & 0x3f) << 8 | usize::from(message[at + 1]);
            }
            _ => {
                labels.push(String::from_utf8_lossy(&message[at + 1..=at + length]).into_owned());
                at += length + 1;
            }
        }
    }
}

/// The IPv4 addresses of a name, as the pod's resolver says (RFC 1035, section 4).
pub(crate) fn addresses_of(from: &Netns, name: &str) -> Result<Vec<IpAddr>, String> {
    const A: u8 = 1;
    let (question, answer) = question(from, name, A)?;
    let count = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
    // Each record: a pointer to the name, type A, class IN, time to live, four bytes of address.
    let records = answer.get(question..).unwrap_or_default().chunks_exact(16).take(count);
    Ok(records.map(|record| IpAddr::from(<[u8; 4]>::try_from(&record[12..]).unwrap())).collect())
}

/// Asks the pod's resolver; where the answers begin, and the message.
fn question(from: &Netns, name: &str, kind: u8) -> Result<(usize, Vec<u8>), String> {
    // One question, recursion desired.
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, kind, 0, 1]);
    let answer = from.run(|| {
        let work = || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.send_to(&question, "127.0.0.11:53")?;
            let mut buffer = [0; 1500];
            let length = socket.recv(&mut buffer)?;
            Ok::<_, std::io::Error>(buffer[..length].to_vec())
        };
        work().map_err(|error| format!("asking for {name}: {error}"))
    })?;
    Ok((question.len(), answer))
}

// === The kernel ===

/// Whether the kernel can make a WireGuard device.
pub(crate) fn has_wireguard() -> bool {
    let add =
        || std::process::Command::new("ip").args(["link", "add", "probe", "type", "wireguard"]).output();
    Netns::new().run(add).is_ok_and(|output| output.status.success())
}
