//! 200 endpoints come to an overlay of three hosts and go, while others send to them: whatever arrives is meant for who gets it.
//!
//! Every endpoint is a number. The book says which number has an address; a client reads it, sends "to N" to the address, and
//! whoever has it answers with the number that it is. In every pod somebody looks at all packets that come in besides.
//!
//! | seen | right when |
//! | --- | --- |
//! | N answers | it was asked |
//! | M answers instead | N left before the answer came, and M got the address after it |
//! | a question for N comes into a pod | the pod is N's, or as above |
//! | an answer comes into a client's pod | it is to the client's own address |

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth::proto::berth::v1::networks_client::NetworksClient;
use berth::proto::berth::v1::{ConnectPodRequest, DisconnectPodRequest, InspectNetworkRequest};
use libtest_mimic::Trial;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use serde_json::Value;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Underlay, eventually, trial};
use crate::support::netns::Netns;
use crate::support::{World, within};

const ENDPOINTS: usize = 200;
/// On each host, one after the other an endpoint of each.
const PODS: usize = 3;
/// Outside of what blocks are made of: an address goes from host to host, as soon as it is free.
const ROAMING: std::ops::Range<u8> = 200..206;
const PORT: u16 = 7_000;
const NETWORK: &str = "churn";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "overlay::endpoints_come_and_go_under_traffic",
        3,
        Underlay::V4,
        endpoints_come_and_go_under_traffic,
    )]
}

async fn endpoints_come_and_go_under_traffic(cluster: &mut Cluster) {
    let create =
        ["network", "create", "-d", "overlay", "--subnet", "10.97.0.0/24", "--ip-range", "10.97.0.0/25"];
    cluster.hosts[0].berth_ok(&[&create[..], &[NETWORK]].concat());
    for world in &cluster.hosts {
        eventually("the network is on every host", || {
            let names = world.berth_ok(&["network", "ls", "-q"]);
            if names.lines().any(|line| line == NETWORK) { Ok(()) } else { Err(names) }
        });
    }
    let book = Arc::new(Book::default());
    let mut clients = Vec::new();
    for (host, world) in cluster.hosts.iter().enumerate() {
        let pod = Pod::start(world, &format!("client{host}")).await;
        let address = pod.connect(None).await;
        clients.push(Client::start(&book, host, pod, address));
    }
    let mut pods = Vec::new();
    for (host, world) in cluster.hosts.iter().enumerate() {
        for number in 0..PODS {
            let pod = Pod::start(world, &format!("pod{host}{number}")).await;
            pods.push((host, pod));
        }
    }
    let stream = Stream::start(&clients[0], &clients[1]);

    let started = Instant::now();
    let mut watchers = Vec::new();
    let mut work = Vec::new();
    for (index, (host, pod)) in pods.into_iter().enumerate() {
        watchers.push(watch_pod(&book, index, &pod.netns));
        work.push(tokio::spawn(come_and_go(Arc::clone(&book), index, host, pod)));
    }
    for work in work {
        work.await.unwrap();
    }
    let (taken, moved) = (started.elapsed(), book.moved.load(Ordering::Relaxed));
    book.done.store(true, Ordering::Relaxed);
    let sent = stream.finish();
    let answers: usize = clients.iter().map(|client| client.answers.load(Ordering::Relaxed)).sum();
    for watcher in watchers {
        watcher.join().unwrap();
    }
    println!(
        "{ENDPOINTS} endpoints in {taken:?}: {answers} answers, {} packets seen, {moved} addresses on another host at once, \
         {sent} words over one connection meanwhile",
        book.seen.load(Ordering::Relaxed),
    );
    let wrong = book.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{} to the wrong pod: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(moved >= ENDPOINTS / 8, "addresses moved between hosts {moved} times only");
    drop(wrong);
    for world in &cluster.hosts {
        eventually("only the clients are left", || only_clients_are_left(world));
    }
    let endpoints = cluster.etcd.keys().into_iter().filter(|key| key.contains("/endpoints/")).count();
    assert_eq!(endpoints, 3, "in etcd");
    eventually("no address is claimed", || {
        let text =
            cluster.etcd.ctl(&["get", "--prefix", "/berth/overlay/allocations/", "--print-value-only"]);
        let allocation: Value = serde_json::from_str(&text).unwrap();
        if allocation["claims"] == serde_json::json!({}) { Ok(()) } else { Err(text) }
    });
}

/// What a host's kernel and daemon know of the network is its client and the two others.
fn only_clients_are_left(world: &World) -> Result<(), String> {
    let network = world.inspect_network(NETWORK);
    let [bridge, vxlan] = ["bridge", "vxlan"].map(|name| network["options"][name].as_str().unwrap());
    let lines = |command: &str, word: &str| -> BTreeSet<String> {
        let (program, arguments) = command.split_once(' ').unwrap();
        let text = world.netns.command(program, &arguments.split(' ').collect::<Vec<_>>());
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    };
    // MACs that are made of addresses; the bridge's entry and the device's are lines of their own.
    let macs = lines(&format!("bridge fdb show br {bridge}"), "0a:58:0a:61:");
    let macs: BTreeSet<String> =
        macs.iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    for (what, wanted, found) in [
        ("forwarding entries", 2, lines(&format!("bridge fdb show dev {vxlan}"), "dst 192.0.2.")),
        ("neighbours", 2, lines(&format!("ip neigh show dev {vxlan}"), "PERMANENT")),
        ("MACs on the bridge", 3, macs),
        ("ports of the bridge", 2, lines(&format!("ip -o link show master {bridge}"), "state")),
    ] {
        if found.len() != wanted {
            return Err(format!("{} {what}, not {wanted}: {found:#?}", found.len()));
        }
    }
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    let counts = (count(&network["endpoints"]), count(&network["remoteEndpoints"]));
    if counts == (1, 2) { Ok(()) } else { Err(network.to_string()) }
}

// === The book ===

/// Who has which address, and what was seen.
#[derive(Default)]
struct Book {
    entries: Mutex<Entries>,
    next: AtomicUsize,
    done: AtomicBool,
    /// What was not right.
    wrong: Mutex<Vec<String>>,
    /// Packets that were looked at.
    seen: AtomicUsize,
    /// So often an address went to another host.
    moved: AtomicUsize,
    /// Roaming addresses that nobody has, with the host that had it last.
    free: Mutex<Option<Vec<(usize, Ipv4Addr)>>>,
}

#[derive(Default)]
struct Entries {
    /// Has an address now, for sure.
    live: HashMap<Ipv4Addr, usize>,
    /// All that had or will have an address, in their order.
    holders: HashMap<Ipv4Addr, Vec<usize>>,
    /// The clients that a number answered to.
    reached: HashMap<usize, BTreeSet<usize>>,
    /// The pod of a number.
    pods: HashMap<usize, usize>,
}

impl Entries {
    /// Whether `other` may get what is meant for `number`.
    fn may_be(&self, address: Ipv4Addr, number: usize, other: usize) -> bool {
        let place = |wanted: usize| self.holders.get(&address)?.iter().position(|holder| *holder == wanted);
        let later = place(number).is_some_and(|old| place(other).is_some_and(|new| new > old));
        number == other || (later && self.live.get(&address) != Some(&number))
    }
}

impl Book {
    /// An address that another host had last, if there is one.
    fn take(&self, host: usize) -> Option<Ipv4Addr> {
        let mut free = self.free.lock().unwrap();
        let all = || ROAMING.map(|last| (usize::MAX, Ipv4Addr::new(10, 97, 0, last))).collect();
        let free = free.get_or_insert_with(all);
        let at = free.iter().rposition(|(last, _)| *last != host)?;
        let (last, address) = free.remove(at);
        if last != usize::MAX {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        Some(address)
    }

    fn give_back(&self, host: usize, address: Ipv4Addr) {
        if ROAMING.contains(&address.octets()[3]) {
            self.free.lock().unwrap().as_mut().unwrap().push((host, address));
        }
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

// === Those that come and go ===

async fn come_and_go(book: Arc<Book>, index: usize, host: usize, pod: Pod) {
    loop {
        let number = book.next.fetch_add(1, Ordering::Relaxed);
        if number >= ENDPOINTS {
            return;
        }
        // Every other one of the host's own block.
        let roaming = if number.is_multiple_of(2) { book.take(host) } else { None };
        if let Some(address) = roaming {
            // Before it is there: it may be asked the moment that it is.
            let mut entries = book.entries.lock().unwrap();
            entries.holders.entry(address).or_default().push(number);
            entries.pods.insert(number, index);
        }
        let address = pod.connect(roaming).await;
        if roaming.is_none() {
            let mut entries = book.entries.lock().unwrap();
            entries.holders.entry(address).or_default().push(number);
            entries.pods.insert(number, index);
        }
        let server = tokio::spawn(serve(pod.bind(address), number));
        book.entries.lock().unwrap().live.insert(address, number);
        let deadline = within(20);
        while book.entries.lock().unwrap().reached.get(&number).is_none_or(|clients| clients.len() < 3) {
            assert!(
                Instant::now() < deadline,
                "endpoint {number} at {address} on host {host} is not reached from all hosts"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // From now on it may be gone.
        book.entries.lock().unwrap().live.remove(&address);
        pod.disconnect().await;
        book.give_back(host, address);
        server.abort();
    }
}

/// Answers every question with what was asked and who is asked.
async fn serve(socket: tokio::net::UdpSocket, number: usize) {
    let mut buffer = [0; 64];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let asked = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let _ = socket.send_to(format!("{asked} {number}").as_bytes(), peer).await;
    }
}

/// A pod, and the client of its host's daemon.
struct Pod {
    id: String,
    netns: Netns,
    networks: NetworksClient<Channel>,
}

impl Pod {
    async fn start(world: &World, name: &str) -> Self {
        let id = world.run_pod(&world.pod(name)).await.unwrap();
        // For the check of what is left.
        world.address(&id).await;
        let netns = Netns::open(&world.daemon.state.join("pods").join(&id).join("ns/net"));
        Self { id, netns, networks: NetworksClient::new(world.channel()) }
    }

    /// Joins the network; the address it has there.
    async fn connect(&self, wanted: Option<Ipv4Addr>) -> Ipv4Addr {
        let request = ConnectPodRequest {
            pod_id: self.id.clone(),
            network: NETWORK.to_owned(),
            addresses: wanted.iter().map(Ipv4Addr::to_string).collect(),
            ..ConnectPodRequest::default()
        };
        let mut networks = self.networks.clone();
        networks.connect_pod(request).await.unwrap_or_else(|status| panic!("{wanted:?}: {status:?}"));
        let all = networks.inspect_network(InspectNetworkRequest { name: NETWORK.to_owned() }).await.unwrap();
        let endpoint =
            all.into_inner().endpoints.into_iter().find(|endpoint| endpoint.pod_id == self.id).unwrap();
        let address = endpoint.addresses[0].split('/').next().unwrap().parse().unwrap();
        assert!(wanted.is_none_or(|wanted| wanted == address));
        address
    }

    async fn disconnect(&self) {
        let request = DisconnectPodRequest { pod_id: self.id.clone(), network: NETWORK.to_owned() };
        self.networks.clone().disconnect_pod(request).await.unwrap();
    }

    fn bind(&self, address: Ipv4Addr) -> tokio::net::UdpSocket {
        let socket = self.netns.run(|| UdpSocket::bind((address, PORT))).unwrap();
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    }
}

// === Those that send ===

/// Asks everybody who is in the book, again and again.
struct Client {
    pod: Pod,
    address: Ipv4Addr,
    answers: Arc<AtomicUsize>,
    work: Vec<tokio::task::JoinHandle<()>>,
}

impl Client {
    fn start(book: &Arc<Book>, host: usize, pod: Pod, address: Ipv4Addr) -> Self {
        let socket = Arc::new(pod.bind(address));
        let answers = Arc::new(AtomicUsize::new(0));
        watch_client(book, &pod.netns, address);
        let ask = {
            let (book, socket) = (Arc::clone(book), Arc::clone(&socket));
            tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(5));
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !book.done.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let live: Vec<_> = book.entries.lock().unwrap().live.clone().into_iter().collect();
                    for (address, number) in live {
                        // A neighbour that is being looked for may refuse one.
                        let _ = socket.send_to(number.to_string().as_bytes(), (address, PORT)).await;
                    }
                }
            })
        };
        let hear = {
            let (book, answers) = (Arc::clone(book), Arc::clone(&answers));
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                loop {
                    // Errors are those of earlier packets.
                    let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let (asked, is) = text.split_once(' ').unwrap();
                    let (asked, is): (usize, usize) = (asked.parse().unwrap(), is.parse().unwrap());
                    let IpAddr::V4(from) = from.ip() else { unreachable!() };
                    answers.fetch_add(1, Ordering::Relaxed);
                    let mut entries = book.entries.lock().unwrap();
                    if entries.may_be(from, asked, is) {
                        entries.reached.entry(is).or_default().insert(host);
                    } else {
                        let live = entries.live.get(&from).copied();
                        book.complain(format!("{from}: {asked} was asked, {is} answered, {live:?} has it"));
                    }
                }
            })
        };
        Self { pod, address, answers, work: vec![ask, hear] }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.work.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// One connection between two clients that lasts all the time: numbers there and back in their order.
struct Stream {
    stop: Arc<AtomicBool>,
    work: std::thread::JoinHandle<usize>,
}

impl Stream {
    fn start(from: &Client, to: &Client) -> Self {
        let at = SocketAddr::from((to.address, PORT));
        let listener = to.pod.netns.run(|| TcpListener::bind(at)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut word = [0; 8];
            while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
        });
        let mut stream = eventually("the clients are connected", || {
            let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(2));
            from.pod.netns.run(connect).map_err(|error| error.to_string())
        });
        stream.set_read_timeout(Some(crate::support::patience(10))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = std::thread::spawn(move || {
            let (mut number, mut word) = (0_usize, [0; 8]);
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(&number.to_ne_bytes()).unwrap();
                stream.read_exact(&mut word).unwrap();
                assert_eq!(usize::from_ne_bytes(word), number);
                number += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            number
        });
        Self { stop, work }
    }

    /// How many numbers came back.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().unwrap()
    }
}

// === Those that look ===

/// A UDP packet over IPv4.
struct Packet {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    text: String,
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        const UDP: u8 = 17;
        let header = usize::from(bytes.first()? & 0xf) * 4;
        let udp = bytes.get(header..).filter(|_| bytes[0] >> 4 == 4 && bytes.get(9) == Some(&UDP))?;
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
        let text = String::from_utf8_lossy(udp.get(8..)?).into_owned();
        Some(Self { from: (address(12)?, port(0)?), to: (address(16)?, port(2)?), text })
    }
}

/// Hands out what comes in or goes out of a namespace, for whomever it is, until all is done.
fn look(
    book: &Arc<Book>,
    netns: &Netns,
    mut each: impl FnMut(&Book, Packet) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let open = || socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthAll);
    let socket = netns.run(open).unwrap();
    let wait = nix::sys::time::TimeVal::new(0, 100_000);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &wait).unwrap();
    let book = Arc::clone(book);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !book.done.load(Ordering::Relaxed) {
            let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
            if let Some(packet) = Packet::parse(&buffer[..length]) {
                book.seen.fetch_add(1, Ordering::Relaxed);
                each(&book, packet);
            }
        }
    })
}

/// Whatever is asked in a pod is asked of it.
fn watch_pod(book: &Arc<Book>, index: usize, netns: &Netns) -> std::thread::JoinHandle<()> {
    look(book, netns, move |book, packet| {
        if packet.from.1 != PORT && packet.to.1 != PORT {
            return;
        }
        let entries = book.entries.lock().unwrap();
        let asked: Option<usize> = packet.text.split(' ').next().and_then(|word| word.parse().ok());
        let of_pod = |number: &usize| entries.pods.get(number) == Some(&index);
        // Questions come, answers go; the address is the pod's on both.
        let address = if packet.text.contains(' ') { packet.from.0 } else { packet.to.0 };
        let right = asked.is_some_and(|asked| {
            let mut holders =
                entries.holders.get(&address).into_iter().flatten().filter(|number| of_pod(number));
            holders.any(|holder| entries.may_be(address, asked, *holder))
        });
        if !right {
            let (text, from, to) = (&packet.text, packet.from, packet.to);
            book.complain(format!("in pod {index}: {text:?} from {from:?} to {to:?}"));
        }
    })
}

/// Whatever comes into a client's pod is its answer, or goes out as its question.
fn watch_client(book: &Arc<Book>, netns: &Netns, own: Ipv4Addr) {
    look(book, netns, move |book, packet| {
        let ours = packet.from.1 == PORT && packet.to.1 == PORT;
        if ours && packet.from.0 != own && packet.to.0 != own {
            let (text, from, to) = (&packet.text, packet.from, packet.to);
            book.complain(format!("in client {own}: {text:?} from {from:?} to {to:?}"));
        }
    });
}
