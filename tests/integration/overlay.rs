//! Overlay networks: three hosts with a daemon each and a real etcd. Pods talk over sockets of the test's own, in the pods'
//! network namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cluster::{Cluster, OUTSIDE, OUTSIDE_V6, Underlay, eventually, trial};
use crate::overlay_pods::{
    PTR, Pod, SRV, addresses_of, ask, ask_udp, at, everywhere, has_wireguard, reaches, refused, resolve,
};
use crate::support::World;
use crate::support::netns::Netns;
use crate::support::world::assert_code;
use tonic::Code;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("overlay::pods_talk_across_hosts", 3, Underlay::V4, pods_talk_across_hosts),
        trial("overlay::pods_talk_over_ipv6_hosts", 3, Underlay::V6, pods_talk_over_ipv6_hosts),
        trial("overlay::without_etcd_all_goes_on", 3, Underlay::V4, without_etcd_all_goes_on),
        trial("overlay::a_host_dies_and_returns", 3, Underlay::V4, a_host_dies_and_returns),
        trial("overlay::addresses_of_a_dead_host_are_reclaimed", 2, Underlay::V4, addresses_are_reclaimed),
        trial(
            "overlay::bad_input_is_refused_and_leaves_nothing",
            2,
            Underlay::Tls,
            bad_input_is_refused_and_leaves_nothing,
        ),
    ];
    let nowhere = crate::support::runtime::Options {
        network: crate::cluster::network_without_etcd(),
        ..crate::support::runtime::Options::default()
    };
    trials.extend(crate::trials![options = nowhere.clone(); other_networks_need_no_etcd]);
    trials
}

// === Tests ===

async fn pods_talk_across_hosts(cluster: &mut Cluster) {
    let subnets = ["--subnet", "10.90.0.0/24", "--subnet", "fd90::/64"];
    cluster.hosts[0].berth_ok(&[&["network", "create", "-d", "overlay"], &subnets[..], &["blue"]].concat());
    everywhere(cluster, "blue");
    let mut pods = Vec::new();
    for (number, world) in cluster.hosts.iter().enumerate() {
        for round in 0..2 {
            let name = format!("pod{number}{round}");
            let pod = world
                .overlay_pod(&name, &json!({"name": "blue", "aliases": [format!("alias{number}{round}")]}))
                .await;
            pod.serve(80, &name);
            pods.push((name, pod));
        }
    }
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|(_, pod)| pod.addresses.clone()).collect();
    assert_eq!(addresses.len(), 12, "no address twice, one of each family: {addresses:?}");
    for (_, from) in &pods {
        for (name, to) in &pods {
            reaches(&from.netns, to, 80, name);
            let answer = eventually("much is sent", || ask(&from.netns, at(to, 80), 300_000));
            assert_eq!(answer, format!("{name} {} 300000", from.addresses[0]), "its own address is seen");
            // 1500 of the underlay, less 50 of VXLAN, less IP and UDP headers.
            for (own, other, bytes) in [
                (from.addresses[0], to.addresses[0], 1450 - 28),
                (from.addresses[1], to.addresses[1], 1450 - 48),
            ] {
                let other = SocketAddr::new(other, 80);
                let answered =
                    eventually("a full datagram comes back", || ask_udp(&from.netns, own, other, bytes));
                assert_eq!(answered, bytes);
            }
        }
        assert!(from.netns.ip("-o link show eth0").contains("mtu 1450"));
    }
    nothing_is_flooded(cluster, &pods[0].1);
    the_way_out_and_in(cluster, &pods[0].1).await;
    names_are_told(cluster, &pods[5].1).await;
    services_are_told(cluster, &pods[4].1).await;
    for name in ["pod00", "pod00.blue", "alias00", &pods[0].1.id[..12]] {
        eventually("a pod on another host is found by name", || {
            let found = addresses_of(&pods[4].1.netns, name)?;
            if found == [pods[0].1.addresses[0]] { Ok(()) } else { Err(format!("{name}: {found:?}")) }
        });
    }
    // In use here, in use elsewhere.
    let said = refused(&cluster.hosts[0], &["network", "rm", "blue"]);
    assert!(said.contains("in use by 2 endpoints"), "{said}");
    for (_, pod) in &pods[..2] {
        cluster.hosts[0].remove_pod(&pod.id).await.unwrap();
    }
    eventually("a pod that is gone is not found", || {
        let found = addresses_of(&pods[4].1.netns, "pod00")?;
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let said = refused(&cluster.hosts[0], &["network", "rm", "blue"]);
    assert!(said.contains("in use on other hosts"), "{said}");
    // A daemon that dies and returns finds all as it was.
    cluster.hosts[1].daemon.kill();
    reaches(&pods[2].1.netns, &pods[4].1, 80, "pod20");
    cluster.hosts[1].daemon.spawn();
    cluster.hosts[1].ready().await;
    reaches(&pods[2].1.netns, &pods[4].1, 80, "pod20");
    reaches(&pods[4].1.netns, &pods[2].1, 80, "pod10");
}

/// A pod's ports and the name of its addresses are known on the other hosts, and no longer when it is gone.
async fn services_are_told(cluster: &Cluster, asker: &Pod) {
    let world = &cluster.hosts[0];
    let mut config = world.pod("teller");
    config.annotations.insert("berth.dev/networks".into(), "blue".into());
    config.annotations.insert("berth.dev/ports".into(), "http=8080,dns=53/udp".into());
    let id = world.run_pod(&config).await.unwrap();
    let addresses: Vec<IpAddr> = {
        let status = world.pod_status(&id).await.unwrap().network.unwrap();
        let more = status.additional_ips.iter().map(|ip| ip.ip.clone());
        std::iter::once(status.ip.clone()).chain(more).map(|text| text.parse().unwrap()).collect()
    };
    eventually("a service is found from another host", || {
        let services = resolve(&asker.netns, "_http._tcp.teller.blue", SRV)?;
        let [service] = &services[..] else { return Err(format!("{services:?}")) };
        // Priority, weight, port, and the name.
        if service.starts_with("8080 teller") { Ok(()) } else { Err(service.clone()) }
    });
    assert_eq!(resolve(&asker.netns, "_dns._tcp.teller.blue", SRV).unwrap(), [""; 0], "it is udp");
    assert_eq!(resolve(&asker.netns, "_dns._udp.teller.blue", SRV).unwrap().len(), 1);
    let reverse = |address: &IpAddr| match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let digits: Vec<String> = digits.chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    };
    for address in &addresses {
        assert_eq!(resolve(&asker.netns, &reverse(address), PTR).unwrap(), ["teller.blue"]);
    }
    world.remove_pod(&id).await.unwrap();
    eventually("it is forgotten", || {
        let left = resolve(&asker.netns, "_http._tcp.teller.blue", SRV)?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// What nobody told of is asked of nobody: no entry for unknown receivers, nothing learned.
fn nothing_is_flooded(cluster: &Cluster, pod: &Pod) {
    let world = &cluster.hosts[0];
    let blue = world.inspect_network("blue");
    let device = blue["options"]["vxlan"].as_str().unwrap();
    let entries = world.netns.command("bridge", &["fdb", "show", "dev", device]);
    assert!(!entries.contains("00:00:00:00:00:00"), "{entries}");
    // Four pods elsewhere: each an entry of the device and one of the bridge.
    assert_eq!(entries.lines().filter(|line| line.contains("dst 192.0.2.")).count(), 4, "{entries}");
    let details = world.netns.ip(&format!("-d link show {device}"));
    assert!(
        details.contains("nolearning") && details.contains("proxy") && details.contains("dstport 4789"),
        "{details}"
    );
    let counters = || -> (u64, u64) {
        let text = world.netns.ip(&format!("-s -j link show {device}"));
        let links: Value = serde_json::from_str(&text).unwrap();
        let sent = &links[0]["stats64"]["tx"];
        (sent["packets"].as_u64().unwrap(), sent["dropped"].as_u64().unwrap())
    };
    // To an address that nobody has, which is asked for, and to a MAC that nobody has.
    pod.netns.ip("neigh add 10.90.0.251 lladdr 02:00:00:00:00:99 dev eth0 nud permanent");
    let before = counters();
    pod.netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..50 {
            let _ = socket.send_to(b"anybody?", "10.90.0.250:9");
            socket.send_to(b"anybody?", "10.90.0.251:9").unwrap();
        }
    });
    let after = counters();
    assert_eq!(after.0, before.0, "sent to the other hosts");
    assert!(after.1 >= before.1 + 50, "{before:?} {after:?}");
}

async fn the_way_out_and_in(cluster: &Cluster, pod: &Pod) {
    let listener = cluster.switch.run(|| TcpListener::bind((OUTSIDE, 8000)).unwrap());
    let serving = std::thread::spawn(move || listener.accept().unwrap().1.ip().to_string());
    let connected = pod.netns.run(|| {
        TcpStream::connect_timeout(&format!("{OUTSIDE}:8000").parse().unwrap(), Duration::from_secs(5))
    });
    connected.unwrap();
    assert_eq!(serving.join().unwrap(), "192.0.2.1", "the host's address is seen outside");
    // A published port of the second host leads to its pod.
    let world = &cluster.hosts[1];
    let mut config = world.pod("published");
    config.annotations.insert("berth.dev/networks".into(), "blue".into());
    let mapping = k8s_cri::v1::PortMapping {
        protocol: 0,
        host_ip: String::new(),
        host_port: 18200,
        container_port: 80,
    };
    config.port_mappings.push(mapping);
    let id = world.run_pod(&config).await.unwrap();
    let address = world.address(&id).await.parse().unwrap();
    let netns = Netns::open(&world.daemon.state.join("pods").join(&id).join("ns/net"));
    let published = Pod { id, netns, addresses: vec![address] };
    published.serve(80, "published");
    let to = "192.0.2.2:18200".parse().unwrap();
    let answer = eventually("the port is reached", || ask(&cluster.switch, to, 1));
    assert_eq!(answer, format!("published {OUTSIDE} 1"), "the client's address is seen");
    // And from a pod on another host.
    let answer = eventually("the port is reached", || ask(&pod.netns, to, 1));
    assert_eq!(answer, "published 192.0.2.1 1");
    world.remove_pod(&published.id).await.unwrap();
}

/// Each host knows what the others' pods are called.
async fn names_are_told(cluster: &Cluster, pod: &Pod) {
    let world = &cluster.hosts[0];
    let config = cluster.hosts[2].pod("pod21");
    let image = cluster.hosts[2].image("busybox").await;
    let sleeper = crate::support::container("worker", &image, &["sleep", "100000"]);
    cluster.hosts[2].launch(&pod.id, &config, &sleeper).await.unwrap();
    eventually("names are told", || {
        let blue = world.inspect_network("blue");
        let remote = blue["remoteEndpoints"].as_array().cloned().unwrap_or_default();
        let found =
            remote.iter().find(|endpoint| endpoint["podId"] == json!(pod.id)).cloned().unwrap_or_default();
        let right = found["pod"] == "pod21"
            && found["namespace"] == "default"
            && found["containers"] == json!(["worker"])
            && found["aliases"] == json!(["alias21"])
            && found["nodeAddress"] == "192.0.2.3"
            && found["addresses"].as_array().is_some_and(|all| all.len() == 2);
        if right { Ok(()) } else { Err(blue.to_string()) }
    });
}

/// Hosts that have no IPv4 address carry pods that have both kinds.
async fn pods_talk_over_ipv6_hosts(cluster: &mut Cluster) {
    let subnets = ["--subnet", "10.90.0.0/24", "--subnet", "fd90::/64"];
    cluster.hosts[0].berth_ok(&[&["network", "create", "-d", "overlay"], &subnets[..], &["blue"]].concat());
    everywhere(cluster, "blue");
    let mut pods = Vec::new();
    for (number, world) in cluster.hosts.iter().enumerate() {
        let name = format!("pod{number}");
        let pod = world.overlay_pod(&name, &json!({"name": "blue"})).await;
        pod.serve(80, &name);
        pods.push((name, pod));
    }
    for (_, from) in &pods {
        for (name, to) in &pods {
            for (own, other) in from.addresses.iter().zip(&to.addresses) {
                let other = SocketAddr::new(*other, 80);
                let answer = eventually("much is sent", || ask(&from.netns, other, 300_000));
                assert_eq!(answer, format!("{name} {own} 300000"));
                // 1500 of the underlay, less 70 of VXLAN, less IP and UDP headers.
                let bytes = 1430 - if own.is_ipv4() { 28 } else { 48 };
                let answered =
                    eventually("a full datagram comes back", || ask_udp(&from.netns, *own, other, bytes));
                assert_eq!(answered, bytes);
            }
        }
        assert!(from.netns.ip("-o link show eth0").contains("mtu 1430"));
    }
    eventually("a pod on another host is found by name", || {
        let found = addresses_of(&pods[2].1.netns, "pod0.blue")?;
        if found == [pods[0].1.addresses[0]] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // The way out, behind the host's only address.
    let listener = cluster.switch.run(|| TcpListener::bind((OUTSIDE_V6, 8000)).unwrap());
    let serving = std::thread::spawn(move || listener.accept().unwrap().1.ip().to_string());
    let at = format!("[{OUTSIDE_V6}]:8000").parse().unwrap();
    let connected = pods[1].1.netns.run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5)));
    connected.unwrap();
    assert_eq!(serving.join().unwrap(), "2001:db8::2", "the host's address is seen outside");
    // A host that goes is forgotten, and is known again when it returns.
    cluster.hosts[2].netns.ip("link set uplink down");
    eventually("the host is forgotten", || cluster.hosts[0].overlay_metric("hosts", 2.0));
    cluster.hosts[2].netns.ip("link set uplink up");
    // An interface that goes down loses its IPv6 addresses.
    cluster.hosts[2].netns.ip("addr replace dev uplink 2001:db8::3/64 nodad");
    cluster.hosts[2].netns.ip(&format!("route replace default via {OUTSIDE_V6}"));
    reaches(&pods[0].1.netns, &pods[2].1, 80, "pod2");
}

async fn without_etcd_all_goes_on(cluster: &mut Cluster) {
    cluster.hosts[0].berth_ok(&["network", "create", "-d", "overlay", "--subnet", "10.91.0.0/24", "blue"]);
    everywhere(cluster, "blue");
    let blue = json!({"name": "blue"});
    let mut pods = Vec::new();
    for (number, world) in cluster.hosts.iter().enumerate() {
        let pod = world.overlay_pod(&format!("pod{number}"), &blue).await;
        pod.serve(80, &format!("pod{number}"));
        pods.push(pod);
    }
    reaches(&pods[0].netns, &pods[1], 80, "pod1");
    reaches(&pods[2].netns, &pods[1], 80, "pod1");
    cluster.etcd.stop();
    eventually("it is noticed", || cluster.hosts[0].overlay_metric("connected", 0.0));
    reaches(&pods[0].netns, &pods[1], 80, "pod1");
    // From the block that is held.
    let late = cluster.hosts[0].overlay_pod("late", &blue).await;
    late.serve(80, "late");
    reaches(&pods[0].netns, &late, 80, "late");
    // What needs the others says so.
    let said = refused(&cluster.hosts[0], &["network", "create", "-d", "overlay", "red"]);
    assert!(said.contains("making network \"red\"") && said.contains("is not reached"), "{said}");
    let said = refused(&cluster.hosts[0], &["network", "rm", "blue"]);
    assert!(said.contains("in use by 2 endpoints"), "{said}");
    let far = json!({"name": "blue", "addresses": ["10.91.0.200"]});
    let said =
        assert_code(cluster.hosts[0].try_overlay_pod("far", &far).await.map(|pod| pod.id), Code::Unavailable);
    assert!(said.contains("10.91.0.200") && said.contains("is not reached"), "{said}");
    // A daemon that starts meanwhile leaves the kernel what it knows.
    cluster.hosts[1].crash_and_restart().await;
    reaches(&pods[1].netns, &pods[2], 80, "pod2");
    let address = pods[2].addresses[0];
    cluster.hosts[2].remove_pod(&pods[2].id).await.unwrap();
    // All converges when it returns.
    cluster.etcd.start();
    reaches(&pods[1].netns, &late, 80, "late");
    eventually("the pod that went is forgotten", || {
        let neighbours = cluster.hosts[0].netns.ip("neigh show nud permanent");
        if neighbours.contains(&format!("{address} ")) { Err(neighbours) } else { Ok(()) }
    });
    // One host misses changes, and the history of them.
    cluster.hosts[1].netns.ip("link set uplink down");
    cluster.hosts[0].remove_pod(&late.id).await.unwrap();
    let newer = cluster.hosts[2].overlay_pod("newer", &blue).await;
    newer.serve(80, "newer");
    cluster.etcd.compact();
    cluster.hosts[1].netns.ip("link set uplink up");
    cluster.hosts[1].netns.ip(&format!("route replace default via {OUTSIDE}"));
    reaches(&pods[1].netns, &newer, 80, "newer");
    reaches(&newer.netns, &pods[1], 80, "pod1");
    eventually("the pod that went is forgotten", || {
        let neighbours = cluster.hosts[1].netns.ip("neigh show nud permanent");
        if neighbours.contains(&format!("{} ", late.addresses[0])) { Err(neighbours) } else { Ok(()) }
    });
}

async fn a_host_dies_and_returns(cluster: &mut Cluster) {
    let create = ["network", "create", "-d", "overlay", "--subnet", "10.92.0.0/24", "blue"];
    cluster.hosts[0].berth_ok(&create);
    everywhere(cluster, "blue");
    let fixed = json!({"name": "blue", "addresses": ["10.92.0.200"]});
    let client = cluster.hosts[0].overlay_pod("client", &json!({"name": "blue"})).await;
    // An address is used again at once on another host.
    for round in 0..4 {
        let name = format!("round{round}");
        let world = &cluster.hosts[1 + round % 2];
        let pod = world.overlay_pod(&name, &fixed).await;
        pod.serve(80, &name);
        reaches(&client.netns, &pod, 80, &name);
        world.remove_pod(&pod.id).await.unwrap();
    }
    let old = cluster.hosts[1].overlay_pod("old", &fixed).await;
    old.serve(80, "old");
    reaches(&client.netns, &old, 80, "old");
    let said = assert_code(
        cluster.hosts[2].try_overlay_pod("new", &fixed).await.map(|pod| pod.id),
        Code::FailedPrecondition,
    );
    assert!(said.contains("10.92.0.200") && said.contains("host "), "{said}");
    // Two blocks for three hosts.
    let create = ["network", "create", "-d", "overlay", "--subnet", "10.92.1.0/29", "tiny"];
    cluster.hosts[0].berth_ok(&create);
    everywhere(cluster, "tiny");
    let tiny = json!({"name": "tiny"});
    let lost = cluster.hosts[1].overlay_pod("tiny1", &tiny).await;
    let kept = cluster.hosts[2].overlay_pod("tiny2", &tiny).await;
    let none = cluster.hosts[0].try_overlay_pod("tiny0", &tiny).await;
    assert_code(none.map(|pod| pod.id), Code::ResourceExhausted);
    // Its daemon dies; when the lease ends, the others forget its pods.
    cluster.hosts[1].daemon.kill();
    eventually("the host is forgotten", || {
        let neighbours = cluster.hosts[0].netns.ip("neigh show nud permanent");
        if neighbours.contains("10.92.0.200") { Err(neighbours) } else { Ok(()) }
    });
    eventually("two hosts are left", || cluster.hosts[0].overlay_metric("hosts", 2.0));
    // A dead host's block is given to who needs one.
    let heir = cluster.hosts[0].overlay_pod("tiny0", &tiny).await;
    heir.serve(80, "tiny0");
    reaches(&kept.netns, &heir, 80, "tiny0");
    let new = cluster.hosts[2].overlay_pod("new", &fixed).await;
    new.serve(80, "new");
    reaches(&client.netns, &new, 80, "new");
    // It returns with its old pod, whose right to the address is older.
    cluster.hosts[1].daemon.spawn();
    cluster.hosts[1].ready().await;
    eventually("its records are back", || cluster.hosts[0].overlay_metric("hosts", 3.0));
    eventually("the old record loses", || {
        cluster.hosts[0].overlay_metric("stale_records{network=\"blue\"}", 1.0)
    });
    reaches(&client.netns, &new, 80, "new");
    cluster.hosts[1].remove_pod(&lost.id).await.unwrap();
    let none = cluster.hosts[1].try_overlay_pod("tiny3", &tiny).await;
    assert_code(none.map(|pod| pod.id), Code::ResourceExhausted);
    reaches(&kept.netns, &heir, 80, "tiny0");
    cluster.hosts[1].remove_pod(&old.id).await.unwrap();
    eventually("nothing is stale", || {
        cluster.hosts[0].overlay_metric("stale_records{network=\"blue\"}", 0.0)
    });
    reaches(&client.netns, &new, 80, "new");
    // Cut off until its lease ends, and back.
    cluster.hosts[2].netns.ip("link set uplink down");
    eventually("the host is forgotten", || {
        let neighbours = cluster.hosts[0].netns.ip("neigh show nud permanent");
        if neighbours.contains("10.92.0.200") { Err(neighbours) } else { Ok(()) }
    });
    cluster.hosts[2].netns.ip("link set uplink up");
    cluster.hosts[2].netns.ip(&format!("route replace default via {OUTSIDE}"));
    reaches(&client.netns, &new, 80, "new");
}

async fn bad_input_is_refused_and_leaves_nothing(cluster: &mut Cluster) {
    let [one, two] = &cluster.hosts[..] else { panic!("two hosts") };
    let create = |world: &World, more: &[&str]| {
        refused(world, &[&["network", "create", "-d", "overlay"], more].concat())
    };
    one.berth_ok(&[
        "network",
        "create",
        "-d",
        "overlay",
        "--subnet",
        "10.93.0.0/24",
        "-o",
        "vni=5000",
        "blue",
    ]);
    everywhere(cluster, "blue");
    for (world, arguments, words) in [
        (two, &["blue"][..], "\"blue\" exists already"),
        (two, &["--subnet", "10.93.0.128/25", "red"], "overlaps 10.93.0.0/24 of network \"blue\""),
        (two, &["--subnet", "10.94.0.0/24", "-o", "vni=5000", "red"], "VNI 5000 is network \"blue\"'s"),
        (one, &["--subnet", "10.94.0.0/24", "-o", "vni=99999999", "red"], "1 to 16777215"),
        (one, &["--subnet", "10.94.0.0/24", "-o", "encrypted=perhaps", "red"], "true or false"),
        (one, &["--subnet", "10.94.0.0/24", "-o", "mtu=1500", "red"], "1280 to 1450"),
        (one, &["--subnet", "10.94.0.0/24", "-o", "block=12", "red"], "block"),
        (one, &["--subnet", "10.94.0.0/24", "--gateway", "10.95.0.1", "red"], "gateway"),
        (one, &["--subnet", "10.85.7.0/24", "red"], "overlaps"),
    ] {
        let said = create(world, arguments);
        assert!(said.contains(words) && said.lines().count() == 1, "{arguments:?}: {said}");
    }
    let networks =
        cluster.etcd.keys().into_iter().filter(|key| key.contains("/networks/")).collect::<Vec<_>>();
    assert_eq!(networks, ["/berth/overlay/networks/blue"], "what was refused is not there");
    // Addresses: of another host's block, outside, the gateway's; all that there are.
    let pod = one.overlay_pod("pod", &json!({"name": "blue"})).await;
    let wants = |address: &str| json!({"name": "blue", "addresses": [address]});
    let neighbour = match pod.addresses[0] {
        IpAddr::V4(address) => IpAddr::from(std::net::Ipv4Addr::from_bits(address.to_bits() + 1)).to_string(),
        IpAddr::V6(_) => unreachable!(),
    };
    let said = assert_code(
        two.try_overlay_pod("a", &wants(&neighbour)).await.map(|pod| pod.id),
        Code::FailedPrecondition,
    );
    assert!(said.contains("is host "), "{said}");
    assert_code(two.try_overlay_pod("b", &wants("10.99.0.1")).await.map(|pod| pod.id), Code::InvalidArgument);
    assert_code(two.try_overlay_pod("c", &wants("10.93.0.1")).await.map(|pod| pod.id), Code::InvalidArgument);
    if !has_wireguard() {
        an_encrypted_network_needs_wireguard(cluster).await;
    }
    let [one, two] = &cluster.hosts[..] else { panic!("two hosts") };
    one.berth_ok(&["network", "create", "-d", "overlay", "--subnet", "10.96.0.0/29", "tiny"]);
    everywhere(cluster, "tiny");
    let tiny = json!({"name": "tiny"});
    for number in 0..2 {
        one.overlay_pod(&format!("tiny{number}"), &tiny).await;
    }
    for number in 2..5 {
        two.overlay_pod(&format!("tiny{number}"), &tiny).await;
    }
    let said =
        assert_code(one.try_overlay_pod("many", &tiny).await.map(|pod| pod.id), Code::ResourceExhausted);
    assert!(said.contains("no block of 10.96.0.0/29"), "{said}");
}

/// Blocks of a host that is gone are everybody's again when somebody says so, and no longer its own when it returns.
async fn addresses_are_reclaimed(cluster: &mut Cluster) {
    let arguments = ["network", "create", "-d", "overlay", "--subnet", "10.95.0.0/24", "blue"];
    cluster.hosts[0].berth_ok(&arguments);
    everywhere(cluster, "blue");
    let network = json!({"name": "blue"});
    cluster.hosts[0].overlay_pod("here", &network).await;
    let there = cluster.hosts[1].overlay_pod("there", &network).await;
    let blocks = |world: &World| -> Vec<Value> {
        serde_json::from_str(&world.berth_ok(&["network", "ipam", "blocks", "-o", "json"])).unwrap()
    };
    let holds = |block: &Value, address: IpAddr| {
        block["block"].as_str().unwrap().parse::<ipnetwork::IpNetwork>().unwrap().contains(address)
    };
    let theirs = eventually("both hosts' blocks are known", || {
        let all = blocks(&cluster.hosts[0]);
        let theirs = all.iter().find(|block| holds(block, there.addresses[0])).cloned();
        theirs.filter(|_| all.len() == 2).ok_or(format!("{all:?}"))
    });
    let id = theirs["nodeId"].as_str().unwrap();
    let reclaim = ["network", "ipam", "reclaim", id];
    assert!(theirs["alive"] == true && theirs["network"] == "blue", "{theirs}");
    let said = refused(&cluster.hosts[0], &reclaim);
    assert!(said.contains("is alive"), "{said}");
    let said = refused(&cluster.hosts[0], &["network", "ipam", "reclaim", "nobody"]);
    assert!(said.contains("no host \"nobody\" has addresses"), "{said}");
    cluster.hosts[1].daemon.kill();
    let said = eventually("its lease ends", || {
        let output = cluster.hosts[0].berth(&reclaim);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    });
    assert_eq!(said, "blue: blocks 1, single addresses 0\n");
    assert_eq!(blocks(&cluster.hosts[0]).len(), 1);
    let said = refused(&cluster.hosts[0], &reclaim);
    assert!(said.contains("has addresses"), "{said}");
    // It returns: what it gives out now it has by a later right.
    cluster.hosts[1].daemon.spawn();
    cluster.hosts[1].ready().await;
    eventually("it hears that its block is gone", || {
        let all = blocks(&cluster.hosts[1]);
        if all.len() != 1 {
            return Err(format!("{all:?}"));
        }
        cluster.hosts[1].overlay_metric("revision_lag", 0.0)
    });
    cluster.hosts[1].remove_pod(&there.id).await.unwrap();
    let again = cluster.hosts[1].overlay_pod("again", &network).await;
    let block = eventually("its new block is known", || {
        let all = blocks(&cluster.hosts[0]);
        let found = all.iter().find(|block| holds(block, again.addresses[0])).cloned();
        found.ok_or(format!("{all:?}"))
    });
    assert!(block["nodeId"] == id && block["epoch"].as_u64() > theirs["epoch"].as_u64(), "{block} {theirs}");
}

/// A kernel without WireGuard makes no encrypted network, and says what it lacks: also of one that another host made.
async fn an_encrypted_network_needs_wireguard(cluster: &Cluster) {
    const WHAT: &str = "this kernel has no WireGuard";
    let world = &cluster.hosts[0];
    let before = cluster.etcd.keys();
    for option in ["encrypted", "encrypted=true", "com.docker.network.driver.overlay.encrypted"] {
        let said = refused(world, &["network", "create", "-d", "overlay", "-o", option, "secret"]);
        assert!(said.contains(WHAT), "{said}");
    }
    assert_eq!(cluster.etcd.keys(), before, "what was refused is not there");
    // As a host that has it would.
    let allocation = json!({"epoch": 1}).to_string();
    let network = json!({"name": "secret", "vni": 7000, "encrypted": true,
        "subnets": [{"subnet": "10.98.0.0/24", "gateway": null, "range": null, "reserved": []}]});
    for (key, value) in [
        ("allocations/7000", &*allocation),
        ("vnis/7000", "secret"),
        ("networks/secret", &*network.to_string()),
    ] {
        cluster.etcd.ctl(&["put", &format!("/berth/overlay/{key}"), value]);
    }
    let said = eventually("it is said why", || {
        let said = refused(world, &["network", "inspect", "secret"]);
        if said.contains(WHAT) { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("network \"secret\" can't be on this host"), "{said}");
    let pod = world.try_overlay_pod("spy", &json!({"name": "secret"})).await;
    let said = assert_code(pod.map(|pod| pod.id), Code::FailedPrecondition);
    assert!(said.contains(WHAT), "{said}");
    assert!(!world.netns.ip("-o link").contains("wg-"), "nothing is made");
    for key in ["allocations/7000", "vnis/7000", "networks/secret"] {
        cluster.etcd.ctl(&["del", &format!("/berth/overlay/{key}")]);
    }
    eventually("it is forgotten", || {
        let said = refused(world, &["network", "inspect", "secret"]);
        if said.contains("does not exist") { Ok(()) } else { Err(said) }
    });
}

async fn other_networks_need_no_etcd(world: &mut World) {
    let (pod, _) = world.pod_with_sleeper("plain").await;
    assert!(world.address(&pod).await.starts_with("10.85."));
    let said = refused(world, &["network", "create", "-d", "overlay", "blue"]);
    assert!(said.contains("etcd at http://192.0.2.254:2379 is not reached"), "{said}");
    world.overlay_metric("connected", 0.0).unwrap();
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "local"]);
    world.prune();
}
