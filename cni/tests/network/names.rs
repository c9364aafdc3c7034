//! Names: what a sandbox on a network of somebody's making is told at 127.0.0.11.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use berth_cni::{
    BridgeOptions, Controller, EndpointOptions, Named, NamedPort, Naming, Network, Protocol, SandboxSpec,
    model::{Forwarding, NetworkDriver},
};
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::runtime::Runtime;

use crate::host::{Host, Netns, eventually, run};

const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

/// A host with servers that run while nobody waits for them.
struct Town<'a> {
    host: &'a Host,
    runtime: Runtime,
    cni: Controller,
}

struct House {
    id: String,
    netns: Netns,
}

impl<'a> Town<'a> {
    fn new(host: &'a Host) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let town = Self { host, cni: host.dual(), runtime };
        town.network("blue", &["10.70.0.0/24", "fd70::/64"], Forwarding::Nat);
        town.network("red", &["10.71.0.0/24"], Forwarding::Nat);
        // The way back of what the sandboxes ask outside.
        run("sysctl -qw net.ipv4.ip_forward=1");
        town
    }

    fn network(&self, name: &str, subnets: &[&str], forwarding: Forwarding) {
        let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap());
        let options = BridgeOptions { forwarding, ..BridgeOptions::new(format!("br-{name}"), subnets) };
        let network = Network::new(name, NetworkDriver::Bridge(options));
        self.runtime.block_on(self.cni.create_network(network)).unwrap();
    }

    fn house(&self, id: &str, naming: Naming, networks: &[&str]) -> House {
        let house = House { id: id.to_owned(), netns: Netns::new() };
        self.runtime.block_on(async {
            let spec = SandboxSpec { id: house.id.clone(), netns: house.netns.path() };
            self.cni.create_sandbox(spec).await.unwrap();
            self.cni.name_sandbox(id, naming).await.unwrap();
        });
        for network in networks {
            self.join(&house, network, &[]);
        }
        house
    }

    fn join(&self, house: &House, network: &str, aliases: &[&str]) -> Vec<IpAddr> {
        let options = EndpointOptions {
            interface: format!("i-{network}"),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            ..EndpointOptions::default()
        };
        let endpoint = self.runtime.block_on(self.cni.join(&house.id, network, options)).unwrap();
        endpoint.addresses.iter().map(ipnetwork::IpNetwork::ip).collect()
    }

    fn leave(&self, house: &House, network: &str) {
        self.runtime.block_on(self.cni.leave(&house.id, network)).unwrap();
    }

    fn finish(self) {
        self.runtime.block_on(self.cni.remove_all()).unwrap();
        drop(self.runtime);
        assert!(!run("nft list tables").contains("berth"));
        assert!(run("ip -o link").lines().all(|line| !line.contains("br-")));
        let _ = self.host;
    }
}

fn named(names: &[&str]) -> Naming {
    Naming { names: names.iter().map(ToString::to_string).collect(), ..Naming::default() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

impl House {
    /// One question over UDP.
    fn send(&self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        self.netns.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect(RESOLVER)?;
            let mut buffer = [0; 65_535];
            let mut received = Err(std::io::ErrorKind::TimedOut.into());
            // As libc's stub does: a datagram may be lost.
            for _ in 0..5 {
                socket.send(bytes)?;
                received = socket.recv(&mut buffer);
                if received.is_ok() {
                    break;
                }
            }
            Ok(buffer[..received?].to_vec())
        })
    }

    fn send_tcp(&self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        self.netns.within(|| {
            let mut stream = TcpStream::connect(RESOLVER)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes())?;
            stream.write_all(bytes)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let bytes = question(name, kind).to_vec().unwrap();
        let by_datagram = Message::from_vec(&self.send(&bytes).unwrap()).unwrap();
        assert_eq!(by_datagram.metadata.id, 4711);
        by_datagram
    }

    fn ask_tcp(&self, name: &str, kind: RecordType) -> Message {
        Message::from_vec(&self.send_tcp(&question(name, kind).to_vec().unwrap()).unwrap()).unwrap()
    }

    /// The addresses of a name, sorted; what else was answered when there are none.
    fn addresses(&self, name: &str) -> Result<Vec<String>, ResponseCode> {
        let mut found = Vec::new();
        let mut code = ResponseCode::NoError;
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = self.ask(name, kind);
            code = answer.metadata.response_code;
            found.extend(texts(&answer));
        }
        found.sort();
        if code == ResponseCode::NoError { Ok(found) } else { Err(code) }
    }
}

fn texts(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

fn strings(addresses: &[IpAddr]) -> Vec<String> {
    let mut all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    all.sort();
    all
}

#[test]
fn endpoints_are_found_by_their_names_on_the_askers_networks_only() {
    Host::test(|host| {
        let town = Town::new(host);
        let db = town.house("0123456789abcdef0123", named(&["db-0", "Db.Example"]), &[]);
        let address = town.join(&db, "blue", &["db"]);
        let on_red = town.join(&db, "red", &["store"]);
        let asker = town.house("asker", named(&["asker"]), &["blue"]);
        for name in
            ["db-0", "DB-0.", "db", "db.blue", "db-0.blue.", "db.example", "0123456789ab", "db.EXAMPLE.blue"]
        {
            assert_eq!(asker.addresses(name), Ok(strings(&address)), "{name}");
        }
        assert_eq!(texts(&asker.ask_tcp("db", RecordType::A)), [address[0].to_string()]);
        assert_eq!(asker.ask("db", RecordType::ANY).answers.len(), 2);
        // It exists, and has nothing of that kind.
        let answer = asker.ask("db", RecordType::MX);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        // Names of networks it is not on, and none at all.
        for name in ["store", "db.red", "db-0.red", "nobody", "blue"] {
            assert_eq!(asker.addresses(name), Err(ResponseCode::NXDomain), "{name}");
        }
        assert_eq!(db.addresses("store"), Ok(strings(&on_red)));
        assert_eq!(db.addresses("asker.red"), Err(ResponseCode::NXDomain));
        // Back from addresses.
        let reverse = |address: IpAddr| match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
            }
            IpAddr::V6(v6) => {
                let digits: String = v6.octets().iter().map(|byte| format!("{byte:02x}")).collect();
                digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa."
            }
        };
        for address in &address {
            assert_eq!(texts(&asker.ask(&reverse(*address), RecordType::PTR)), ["db-0.blue."]);
        }
        let code = |name: &str| asker.ask(name, RecordType::PTR).metadata.response_code;
        assert_eq!(code(&reverse("10.70.0.200".parse().unwrap())), ResponseCode::NXDomain);
        assert_eq!(code(&reverse(on_red[0])), ResponseCode::NXDomain);
        town.finish();
    });
}

#[test]
fn a_service_is_all_who_share_an_alias_in_turns() {
    Host::test(|host| {
        let town = Town::new(host);
        let asker = town.house("asker", named(&["asker"]), &["blue"]);
        let mut all = Vec::new();
        let mut houses = Vec::new();
        for number in 0..3_u16 {
            let ports = vec![
                NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 + number },
                NamedPort { name: "53".into(), protocol: Protocol::Udp, port: 53 },
            ];
            let naming = Naming { ports, ..named(&[&format!("web-{number}")]) };
            let house = town.house(&format!("house{number}"), naming, &[]);
            all.push(town.join(&house, "blue", &["web"])[0].to_string());
            houses.push(house);
        }
        let firsts: HashSet<String> =
            (0..12).map(|_| texts(&asker.ask("web", RecordType::A))[0].clone()).collect();
        assert_eq!(firsts, all.iter().cloned().collect(), "each comes first now and then");
        let mut answer = texts(&asker.ask("web", RecordType::A));
        answer.sort();
        assert_eq!(answer, all);
        let answer = asker.ask("_http._tcp.web", RecordType::SRV);
        let mut found: Vec<_> = answer
            .answers
            .iter()
            .map(|record| match &record.data {
                RData::SRV(service) => (service.port, service.target.to_ascii()),
                other => panic!("{other}"),
            })
            .collect();
        found.sort();
        let expected: Vec<_> = (0..3).map(|n| (8080 + n, format!("web-{n}.blue."))).collect();
        assert_eq!(found, expected);
        assert_eq!(answer.additionals.len(), 6, "the addresses of both families come along");
        assert_eq!(asker.ask("_53._udp.web-1.blue", RecordType::SRV).answers.len(), 1);
        for name in ["_https._tcp.web", "_http._udp.web"] {
            assert_eq!(asker.ask(name, RecordType::SRV).answers.len(), 0, "{name}");
        }
        drop(houses);
        town.finish();
    });
}

#[test]
fn names_come_and_go_with_their_endpoints() {
    Host::test(|host| {
        let town = Town::new(host);
        let asker = town.house("asker", named(&["asker"]), &["blue"]);
        let late = town.house("late", named(&["late"]), &[]);
        assert_eq!(asker.addresses("late"), Err(ResponseCode::NXDomain));
        let address = town.join(&late, "blue", &["alias"]);
        assert_eq!(asker.addresses("alias"), Ok(strings(&address)));
        town.cni.name_more("late", &["container".into()]);
        assert_eq!(asker.addresses("container"), Ok(strings(&address)));
        town.cni.name_more("late", &[]);
        assert_eq!(asker.addresses("container"), Err(ResponseCode::NXDomain));
        assert_eq!(asker.addresses("late"), Ok(strings(&address)));
        town.leave(&late, "blue");
        assert!(!town.cni.has_resolver("late") && town.cni.has_resolver("asker"));
        for name in ["late", "alias"] {
            assert_eq!(asker.addresses(name), Err(ResponseCode::NXDomain));
        }
        let address = town.join(&late, "blue", &[]);
        assert_eq!(asker.addresses("late"), Ok(strings(&address)));
        // The asker itself gets about: its resolver follows.
        let on_red = town.join(&late, "red", &["red-one"]);
        assert_eq!(asker.addresses("red-one"), Err(ResponseCode::NXDomain));
        town.join(&asker, "red", &[]);
        assert_eq!(asker.addresses("red-one"), Ok(strings(&on_red)));
        town.leave(&asker, "red");
        assert_eq!(asker.addresses("red-one"), Err(ResponseCode::NXDomain));
        town.runtime.block_on(town.cni.delete_sandbox("late")).unwrap();
        assert_eq!(asker.addresses("late"), Err(ResponseCode::NXDomain));
        // What other sources know stands beside it, and is replaced as a whole.
        let directory = town.cni.directory();
        let there = |name: &str, address: &str| {
            let entry = Named {
                names: vec![name.into()],
                addresses: vec![address.parse().unwrap()],
                ports: Vec::new(),
            };
            (format!("etcd/node-2/{name}"), entry)
        };
        let mut changes = directory.subscribe();
        directory.replace("blue", "etcd/", vec![there("far", "10.70.0.99"), there("further", "10.70.0.98")]);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(directory.entries("blue").len(), 3);
        town.cni.name_more("asker", &["more".into()]);
        assert!(changes.has_changed().unwrap());
        let own = directory.entries("blue").into_iter().find(|(owner, _)| owner == "asker").unwrap().1;
        assert_eq!(own.names, ["asker", "more"]);
        assert_eq!(asker.addresses("far"), Ok(vec!["10.70.0.99".to_owned()]));
        directory.replace("blue", "etcd/", vec![there("far", "10.70.0.97")]);
        assert_eq!(asker.addresses("far.blue"), Ok(vec!["10.70.0.97".to_owned()]));
        assert_eq!(asker.addresses("further"), Err(ResponseCode::NXDomain));
        assert_eq!(asker.addresses("asker").map(|found| found.len()), Ok(2));
        town.finish();
    });
}

#[test]
fn the_default_network_has_neither_names_nor_resolvers() {
    Host::test(|host| {
        let town = Town::new(host);
        let plain = town.house("plain", named(&["plain"]), &["bridge"]);
        assert!(!town.cni.has_resolver("plain"));
        let traces = plain.netns.within(|| run("nft list tables") + &run("ss -lntuH"));
        assert_eq!(traces.trim(), "");
        // Beside another one it has a resolver, but no name on the default network.
        town.join(&plain, "blue", &[]);
        assert_eq!(plain.addresses("plain.blue").map(|found| found.len()), Ok(2));
        assert_eq!(plain.addresses("plain.bridge"), Err(ResponseCode::NXDomain));
        town.leave(&plain, "blue");
        let listening = || plain.netns.within(|| run("ss -lntuH"));
        eventually("the resolver's sockets are closed", || listening().trim().is_empty());
        assert_eq!(plain.netns.within(|| run("nft list tables")).trim(), "");
        town.finish();
    });
}

#[test]
fn resolvers_come_back_with_the_controller() {
    Host::test(|host| {
        let mut town = Town::new(host);
        let db = town.house("db", named(&["db"]), &[]);
        let address = town.join(&db, "blue", &["store"]);
        let asker = town.house("asker", named(&["asker"]), &["blue"]);
        assert_eq!(asker.addresses("store"), Ok(strings(&address)));
        drop(town.cni);
        drop(town.runtime);
        town.runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        town.cni = host.dual();
        let live: HashSet<String> = ["db".to_owned(), "asker".to_owned()].into();
        let report = town.runtime.block_on(town.cni.reconcile(&live)).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(asker.addresses("store"), Ok(strings(&address)));
        assert_eq!(asker.addresses("db.blue"), Ok(strings(&address)));
        // One that is gone meanwhile is found no more.
        let live: HashSet<String> = ["asker".to_owned()].into();
        town.runtime.block_on(town.cni.reconcile(&live)).unwrap();
        assert_eq!(asker.addresses("store"), Err(ResponseCode::NXDomain));
        town.finish();
    });
}

#[test]
fn a_sandbox_may_serve_port_53_itself() {
    Host::test(|host| {
        let town = Town::new(host);
        let server = town.house("server", named(&["server"]), &["blue"]);
        server.netns.within(|| {
            let everywhere = UdpSocket::bind("0.0.0.0:53").unwrap();
            let _listener = TcpListener::bind("0.0.0.0:53").unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while let Ok((_, client)) = everywhere.recv_from(&mut buffer) {
                    let _ = everywhere.send_to(b"mine", client);
                }
            });
        });
        assert_eq!(server.addresses("server").map(|found| found.len()), Ok(2));
        let mine = server.netns.within(|| crate::host::udp(Ipv4Addr::LOCALHOST, 53)).unwrap();
        assert_eq!(mine, "mine");
        town.finish();
    });
}

// === Other names ===

/// A name server out there, at 192.0.2.2 and further addresses: answers by the first label of what is asked.
struct Outside {
    asked: Arc<AtomicUsize>,
}

impl Outside {
    fn new(host: &Host) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        host.outside.within(|| {
            run("ip route add 10.0.0.0/8 via 192.0.2.1");
            for number in [3, 4] {
                run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"));
            }
            let (udp, tcp) =
                (UdpSocket::bind("192.0.2.2:53").unwrap(), TcpListener::bind("192.0.2.2:53").unwrap());
            let counter = Arc::clone(&asked);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let answer = Self::answer(&buffer[..length], false);
                    let _ = udp.send_to(&answer, client);
                }
            });
            thread::spawn(move || {
                while let Ok((mut stream, _)) = tcp.accept() {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut bytes).unwrap();
                    let answer = Self::answer(&bytes, true);
                    stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            });
            // One that only ever fails, and one that never says anything.
            let (failing, silent) =
                (UdpSocket::bind("192.0.2.3:53").unwrap(), UdpSocket::bind("192.0.2.4:53").unwrap());
            thread::spawn(move || {
                let _silent = silent;
                let mut buffer = [0; 4096];
                while let Ok((length, client)) = failing.recv_from(&mut buffer) {
                    buffer[2] |= 0x80;
                    buffer[3] = 2;
                    let _ = failing.send_to(&buffer[..length], client);
                }
            });
        });
        Self { asked }
    }

    fn answer(bytes: &[u8], stream: bool) -> Vec<u8> {
        let question = Message::from_vec(bytes).unwrap();
        let query = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.add_query(query.clone());
        let first = query
            .name
            .iter()
            .next()
            .map(|label| String::from_utf8_lossy(label).into_owned())
            .unwrap_or_default();
        let add = |answer: &mut Message, ttl: u32, last: u8| {
            let data = RData::A(rdata::A(Ipv4Addr::new(203, 0, 113, last)));
            answer.add_answer(Record::from_rdata(query.name.clone(), ttl, data));
        };
        match first.as_str() {
            "kept" => add(&mut answer, 300, 7),
            "fleeting" => add(&mut answer, 0, 8),
            "long" if !stream => answer.metadata.truncation = true,
            // 100 records fit no datagram of 512 bytes.
            "long" | "wide" => (0..100).for_each(|number| add(&mut answer, 300, number)),
            "forged" => answer.metadata.id ^= 1,
            _ => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let soa = rdata::SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 30);
                answer.add_authority(Record::from_rdata(Name::root(), 30, RData::SOA(soa)));
            }
        }
        answer.to_vec().unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

fn asking(names: &[&str], upstream: &[&str]) -> Naming {
    Naming { upstream: upstream.iter().map(|server| server.parse().unwrap()).collect(), ..named(names) }
}

#[test]
fn other_names_are_asked_of_the_sandboxs_own_servers_and_kept() {
    Host::test(|host| {
        let town = Town::new(host);
        let outside = Outside::new(host);
        let pod = town.house("pod", asking(&["pod"], &["192.0.2.2"]), &["blue"]);
        let known = |name: &str| texts(&pod.ask(name, RecordType::A));
        for _ in 0..3 {
            assert_eq!(known("kept.example"), ["203.0.113.7"]);
            assert_eq!(known("KEPT.example"), ["203.0.113.7"]);
        }
        assert_eq!(outside.asked(), 1, "once, then from the cache");
        assert!(pod.ask("kept.example", RecordType::A).answers[0].ttl <= 300);
        for _ in 0..2 {
            assert_eq!(known("fleeting.example"), ["203.0.113.8"]);
        }
        assert_eq!(outside.asked(), 2, "an answer that holds no time is not kept");
        for _ in 0..2 {
            assert_eq!(pod.addresses("missing.example"), Err(ResponseCode::NXDomain));
        }
        assert_eq!(outside.asked(), 2, "both kinds once: that there is none is kept too");
        // What does not fit a datagram: said so, and whole over TCP.
        let short = pod.ask("long.example", RecordType::A);
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(pod.ask_tcp("long.example", RecordType::A).answers.len(), 100);
        let short = pod.ask("wide.example", RecordType::A);
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(pod.ask_tcp("wide.example", RecordType::A).answers.len(), 100);
        let mut roomy = question("wide.example", RecordType::A);
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(4096);
        roomy.set_edns(edns);
        let bytes = pod.send(&roomy.to_vec().unwrap()).unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 100);
        // Names of ours never leave.
        outside.asked();
        assert_eq!(pod.ask("pod", RecordType::TXT).metadata.response_code, ResponseCode::NoError);
        assert_eq!(outside.asked(), 0);
        let counts = town.cni.name_counts();
        assert!(counts.cached >= 5 && counts.forwarded >= 5 && counts.local >= 1, "{counts:?}");
        town.finish();
    });
}

#[test]
fn what_a_sandbox_answers_in_a_servers_place_is_for_itself_alone() {
    Host::test(|host| {
        let town = Town::new(host);
        let _outside = Outside::new(host);
        let liar = town.house("liar", asking(&["liar"], &["192.0.2.2"]), &["blue"]);
        let other = town.house("other", asking(&["other"], &["192.0.2.2"]), &["blue"]);
        // Packets to the server stay in its own namespace.
        liar.netns.within(|| {
            run("ip addr add 192.0.2.2/32 dev lo");
            let server = UdpSocket::bind("192.0.2.2:53").unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok((length, client)) = server.recv_from(&mut buffer) {
                    let asked = Message::from_vec(&buffer[..length]).unwrap();
                    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
                    answer.add_query(asked.queries[0].clone());
                    let data = RData::A(rdata::A(Ipv4Addr::new(198, 51, 100, 66)));
                    answer.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 3_600, data));
                    let _ = server.send_to(&answer.to_vec().unwrap(), client);
                }
            });
        });
        assert_eq!(texts(&liar.ask("kept.example", RecordType::A)), ["198.51.100.66"]);
        assert_eq!(texts(&other.ask("kept.example", RecordType::A)), ["203.0.113.7"], "the server's own");
        town.finish();
    });
}

#[test]
fn servers_that_fail_or_are_silent_hold_nobody_up_for_long() {
    Host::test(|host| {
        let town = Town::new(host);
        let _outside = Outside::new(host);
        let failing = town.house("failing", asking(&["failing"], &["192.0.2.3", "192.0.2.2"]), &["blue"]);
        assert_eq!(texts(&failing.ask("kept.example", RecordType::A)), ["203.0.113.7"]);
        let only = town.house("only", asking(&["only"], &["192.0.2.3"]), &["blue"]);
        assert_eq!(only.addresses("kept.example"), Err(ResponseCode::ServFail), "what the server said");
        let silent = town.house("silent", asking(&["silent"], &["192.0.2.4", "192.0.2.2"]), &["blue"]);
        assert_eq!(texts(&silent.ask("kept.example", RecordType::A)), ["203.0.113.7"]);
        // Answers to other questions than ours are none.
        let forged = town.house("forged", asking(&["forged"], &["192.0.2.2"]), &["blue"]);
        assert_eq!(forged.addresses("forged.example"), Err(ResponseCode::ServFail));
        assert!(town.cni.name_counts().failed >= 1);
        // While many wait, names of ours are answered, and those beyond the bound are refused.
        let mute = town.house("mute", asking(&["mute"], &["192.0.2.4"]), &["blue"]);
        let refused = mute.netns.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.connect(RESOLVER).unwrap();
            for number in 0..200 {
                let name = format!("name-{number}.example");
                socket.send(&question(&name, RecordType::A).to_vec().unwrap()).unwrap();
            }
            let mut codes = Vec::new();
            let mut buffer = [0; 4096];
            for _ in 0..1_000 {
                socket.send(&question("mute", RecordType::A).to_vec().unwrap()).unwrap();
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                let answer = Message::from_vec(&buffer[..length]).unwrap();
                if !answer.answers.is_empty() {
                    break;
                }
                codes.push(answer.metadata.response_code);
            }
            codes
        });
        assert!(refused.contains(&ResponseCode::Refused), "{refused:?}");
        town.finish();
    });
}

#[test]
fn from_internal_networks_no_question_leaves() {
    Host::test(|host| {
        let town = Town::new(host);
        let outside = Outside::new(host);
        town.network("inner", &["10.72.0.0/24"], Forwarding::Internal);
        // One server out there, one on the host's loopback, which the sandbox could reach by the daemon only.
        let on_host = UdpSocket::bind("127.0.0.53:53").unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = on_host.recv_from(&mut buffer) {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = on_host.send_to(&Outside::answer(&buffer[..length], false), client);
            }
        });
        let shut = town.house("shut", asking(&["shut"], &["127.0.0.53", "192.0.2.2"]), &["inner"]);
        assert_eq!(shut.addresses("kept.example"), Err(ResponseCode::NXDomain));
        assert_eq!((asked.load(Ordering::Relaxed), outside.asked()), (0, 0));
        assert_eq!(shut.addresses("shut").map(|found| found.len()), Ok(1));
        let open = town.house("open", asking(&["open"], &["127.0.0.53"]), &["blue"]);
        assert_eq!(texts(&open.ask("kept.example", RecordType::A)), ["203.0.113.7"]);
        assert_eq!(asked.load(Ordering::Relaxed), 1, "a loopback server is the host's");
        town.finish();
    });
}

/// A server on port 53 of an address of the calling thread's namespace that knows every name by one address, over UDP and TCP.
fn answering(at: IpAddr, address: Ipv4Addr) {
    let answer = move |bytes: &[u8]| {
        let asked = Message::from_vec(bytes).unwrap();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(asked.queries[0].clone());
        let data = RData::A(rdata::A(address));
        answer.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 300, data));
        answer.to_vec().unwrap()
    };
    let (udp, tcp) = (UdpSocket::bind((at, 53)).unwrap(), TcpListener::bind((at, 53)).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..length]), client);
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).unwrap();
            let answer = answer(&bytes);
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
}

/// A server on loopback that was named for a sandbox is the one in it: a sidecar. The host's has the same address.
#[test]
fn loopback_servers_of_a_sandbox_are_asked_inside_it() {
    Host::test(|host| {
        let town = Town::new(host);
        town.network("inner", &["10.72.0.0/24"], Forwarding::Internal);
        let on = |address: &str| address.parse::<IpAddr>().unwrap();
        for address in ["127.0.0.1", "::1"] {
            answering(on(address), Ipv4Addr::new(198, 51, 100, 1));
        }
        let own = |id: &str, server: &str| Naming { own_upstream: true, ..asking(&[id], &[server]) };
        let houses = [("one", "127.0.0.1", "blue"), ("two", "127.0.0.1", "blue"), ("six", "::1", "blue")];
        let houses = [&houses[..], &[("shut", "127.0.0.1", "inner")]].concat();
        for (number, (id, server, network)) in (10..).zip(houses) {
            let house = town.house(id, own(id, server), &[network]);
            let nobody = house.ask("db.example", RecordType::A).metadata.response_code;
            assert_eq!(
                nobody,
                ResponseCode::ServFail,
                "{id}: nobody answers inside, and nobody else is asked"
            );
            house.netns.within(|| answering(on(server), Ipv4Addr::new(203, 0, 113, number)));
            let expected = [format!("203.0.113.{number}")];
            for _ in 0..2 {
                assert_eq!(texts(&house.ask("db.example", RecordType::A)), expected, "{id}");
            }
            assert_eq!(texts(&house.ask_tcp("web.example", RecordType::A)), expected, "{id}");
        }
        // One that got the host's servers asks there.
        let plain = town.house("plain", asking(&["plain"], &["127.0.0.1"]), &["blue"]);
        assert_eq!(texts(&plain.ask("db.example", RecordType::A)), ["198.51.100.1"]);
        // Its own resolver is nobody to ask.
        let circle = town.house("circle", own("circle", "127.0.0.11"), &["blue"]);
        assert_eq!(circle.addresses("db.example"), Err(ResponseCode::NXDomain));
        town.finish();
    });
}

#[test]
fn bytes_that_are_no_questions_do_no_harm() {
    Host::test(|host| {
        let town = Town::new(host);
        let pod = town.house("pod", named(&["pod"]), &["blue"]);
        let good = question("pod", RecordType::A).to_vec().unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        pod.netns.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect(RESOLVER).unwrap();
            for round in 0..2_000 {
                let mut bytes = if round % 2 == 0 {
                    good.clone()
                } else {
                    vec![0; usize::try_from(random() % 600).unwrap()]
                };
                let changes = if round % 2 == 0 { 1 + random() % 4 } else { 600 };
                for _ in 0..changes {
                    let length = bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(usize::try_from(random()).unwrap_or(7) % length) {
                        *byte = u8::try_from(random() & 0xff).unwrap();
                    }
                }
                let _ = socket.send(&bytes);
            }
            for bytes in [&[0, 0][..], &[0, 5, 1], &[255, 255, 1, 2, 3], b"GET / HTTP/1.1\r\n\r\n"] {
                let mut stream = TcpStream::connect(RESOLVER).unwrap();
                stream.write_all(bytes).unwrap();
            }
        });
        assert_eq!(pod.addresses("pod").map(|found| found.len()), Ok(2), "it still answers");
        assert_eq!(texts(&pod.ask_tcp("pod", RecordType::A)).len(), 1);
        assert!(town.cni.name_counts().refused > 0);
        // Not a question, of another class, of another kind.
        let mut other = question("pod", RecordType::A);
        other.metadata.op_code = OpCode::Notify;
        let answer = Message::from_vec(&pod.send(&other.to_vec().unwrap()).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
        town.finish();
    });
}
