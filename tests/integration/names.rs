//! Names on networks that people made: pods, containers and aliases at 127.0.0.11, and whom pods ask otherwise.

use std::net::UdpSocket;

use k8s_cri::v1::DnsConfig;
use libtest_mimic::Trial;
use serde_json::json;

use crate::network::web;
use crate::support::netns::Netns;
use crate::support::{World, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        pods_find_each_other_by_name,
        names_follow_containers_and_connections,
        the_kubelets_configuration_is_kept,
        names_outlive_the_daemon,
        bad_port_names_are_refused,
    ]
}

const OWN: &str = "nameserver 127.0.0.11";

/// The sorted addresses that a container is told for a name.
async fn lookup(world: &World, container: &str, name: &str) -> String {
    let script = format!("nslookup {name} 2>&1 | sed -n '/^Name:/,$s/^Address.*: //p' | sort -u");
    world.sh(container, &script).await.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn pods_find_each_other_by_name(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    world.berth_ok(&["network", "create", "--subnet", "10.71.0.0/24", "red"]);
    let pod = |name: &str, networks: &str| {
        let mut pod = world.pod(name);
        pod.dns_config = None;
        pod.annotations.insert("berth.dev/networks".into(), networks.into());
        pod.annotations.insert("berth.dev/ports".into(), "http=80".into());
        pod
    };
    let services = json!([{"name": "blue", "addresses": ["10.70.0.10"], "aliases": ["shop", "store"]}]);
    web(world, &pod("web-1", &services.to_string())).await;
    let services = json!([{"name": "blue", "addresses": ["10.70.0.11"], "aliases": ["shop"]}]);
    web(world, &pod("web-2", &services.to_string())).await;
    web(world, &pod("other", "red")).await;
    let client = pod("client", "blue");
    let client_id = world.run_pod(&client).await.unwrap();
    let id = world.sleeper(&client_id, &client).await;
    let configuration = world.sh(&id, "cat /etc/resolv.conf").await;
    assert!(configuration.contains(OWN) && configuration.contains("ndots:0"), "{configuration}");
    assert_eq!(configuration.matches("nameserver").count(), 1, "{configuration}");
    for (name, addresses) in [
        ("web-1", "10.70.0.10"),
        ("web-1.blue", "10.70.0.10"),
        ("STORE", "10.70.0.10"),
        ("shop", "10.70.0.10 10.70.0.11"),
        ("sleeper", world.address(&client_id).await.as_str()),
        ("other", ""),
        ("web-1.red", ""),
    ] {
        assert_eq!(lookup(world, &id, name).await, addresses, "{name}");
    }
    assert_eq!(world.sh(&id, "wget -q -O - http://web-2/").await, "It works.");
    let back = world.sh(&id, "nslookup 10.70.0.11").await;
    assert!(back.contains("name = web-2.blue"), "{back}");
    assert!(world.metric("berth_dns_queries_total{answer=\"local\"}") > Some(5.0));
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    world.prune();
}

async fn names_follow_containers_and_connections(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let client = world.pod("client");
    let client_id = world.run_pod(&client).await.unwrap();
    let id = world.sleeper(&client_id, &client).await;
    let before = world.sh(&id, "cat /etc/resolv.conf").await;
    assert!(!before.contains(OWN), "{before}");
    let listening = "netstat -lnu 2>/dev/null | grep -c 127.0.0.11 || true";
    assert_eq!(world.sh(&id, listening).await, "0", "no server on the default network");
    // Connected while it runs, it asks its own resolver from then on.
    world.berth_ok(&["network", "connect", "blue", "client"]);
    assert!(world.sh(&id, "cat /etc/resolv.conf").await.contains(OWN));
    let mut server = world.pod("server");
    server.annotations.insert("berth.dev/networks".into(), "blue".into());
    let server_id = web(world, &server).await;
    let address = world.address(&server_id).await;
    assert_eq!(lookup(world, &id, "web").await, address, "by the container's name");
    let container = world.list_containers().await.unwrap();
    let container = container.iter().find(|c| c.pod_sandbox_id == server_id).unwrap().id.clone();
    world.stop_container(&container, 0).await.unwrap();
    assert_eq!(lookup(world, &id, "web").await, "", "an ended container is not found");
    assert_eq!(lookup(world, &id, "server").await, address);
    world.berth_ok(&["network", "disconnect", "blue", "server"]);
    assert_eq!(lookup(world, &id, "server").await, "");
    world.berth_ok(&["network", "connect", "--alias", "again", "blue", "server"]);
    assert!(!lookup(world, &id, "again").await.is_empty());
    world.stop_pod(&server_id).await.unwrap();
    assert_eq!(lookup(world, &id, "again").await, "");
    world.berth_ok(&["network", "disconnect", "blue", "client"]);
    assert_eq!(world.sh(&id, "cat /etc/resolv.conf").await, before);
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    world.prune();
}

/// A name server on all addresses of a namespace; it says that all names are 203.0.113.`last`.
fn answer_names(netns: &Netns, last: u8) {
    let server = netns.run(|| UdpSocket::bind("0.0.0.0:53")).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, client)) = server.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            // Nothing but the question, and where an address is asked for a record that points back to its name.
            let end = 12 + answer[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            answer.truncate(end);
            let is_address = answer[end - 3] == 1;
            answer[6..12].copy_from_slice(&[0, u8::from(is_address), 0, 0, 0, 0]);
            if is_address {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, last]);
            }
            let _ = server.send_to(&answer, client);
        }
    });
}

async fn the_kubelets_configuration_is_kept(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    // A server on the node, which pods reach by their gateway.
    answer_names(&world.netns, 5);
    let dns = |server: &str| {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Some(DnsConfig {
            servers: vec![server.to_owned()],
            searches: strings(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: strings(&["ndots:5"]),
        })
    };
    let mut plain = world.pod("plain");
    plain.dns_config = dns("10.96.0.10");
    let plain_id = world.run_pod(&plain).await.unwrap();
    let id = world.sleeper(&plain_id, &plain).await;
    assert_eq!(
        world.sh(&id, "cat /etc/resolv.conf").await,
        "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
    );
    let mut beside = world.pod("beside");
    beside.dns_config = dns("10.85.0.1");
    beside.annotations.insert("k8s.v1.cni.cncf.io/networks".into(), "blue".into());
    let beside_id = world.run_pod(&beside).await.unwrap();
    let id = world.sleeper(&beside_id, &beside).await;
    assert_eq!(
        world.sh(&id, "cat /etc/resolv.conf").await,
        "search default.svc.cluster.local svc.cluster.local\noptions ndots:5\nnameserver 127.0.0.11"
    );
    assert_eq!(lookup(world, &id, "kubernetes.default.svc.cluster.local.").await, "203.0.113.5");
    assert!(lookup(world, &id, "beside.blue.").await.starts_with("10.70.0."));
    // One of its own, on its loopback: the node has one at that address as well.
    let mut sidecar = world.pod("sidecar");
    sidecar.dns_config = dns("127.0.0.1");
    sidecar.annotations.insert("berth.dev/networks".into(), "blue".into());
    let sidecar_id = world.run_pod(&sidecar).await.unwrap();
    let id = world.sleeper(&sidecar_id, &sidecar).await;
    answer_names(&Netns::open(&world.daemon.state.join("pods").join(&sidecar_id).join("ns/net")), 9);
    assert_eq!(lookup(world, &id, "kubernetes.default.svc.cluster.local.").await, "203.0.113.9");
    assert!(lookup(world, &id, "sidecar.blue.").await.starts_with("10.70.0."));
    for pod in [&plain_id, &beside_id, &sidecar_id] {
        world.remove_pod(pod).await.unwrap();
    }
    world.prune();
}

async fn names_outlive_the_daemon(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let mut server = world.pod("server");
    let services = json!([{"name": "blue", "aliases": ["db"]}]).to_string();
    server.annotations.insert("berth.dev/networks".into(), services.clone());
    let server_id = web(world, &server).await;
    let address = world.address(&server_id).await;
    let mut client = world.pod("client");
    client.annotations.insert("berth.dev/networks".into(), "blue".into());
    let client_id = world.run_pod(&client).await.unwrap();
    let id = world.sleeper(&client_id, &client).await;
    for restart in 0..3 {
        for name in ["db", "server", "web", "server.blue"] {
            assert_eq!(lookup(world, &id, name).await, address, "{name} after {restart} restarts");
        }
        if restart == 0 {
            world.restart().await;
        } else {
            world.crash_and_restart().await;
        }
    }
    // A pod that went while there was no daemon.
    world.daemon.kill();
    world.daemon.spawn();
    world.ready().await;
    world.remove_pod(&server_id).await.unwrap();
    let deadline = within(10);
    while !lookup(world, &id, "db").await.is_empty() {
        assert!(std::time::Instant::now() < deadline, "the name of a removed pod");
    }
    world.remove_pod(&client_id).await.unwrap();
    world.prune();
}

async fn bad_port_names_are_refused(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let mut pod = world.pod("bad");
    pod.annotations.insert("berth.dev/ports".into(), "http=eighty".into());
    let message = crate::support::world::assert_code(world.run_pod(&pod).await, tonic::Code::InvalidArgument);
    assert!(message.contains("berth.dev/ports") && message.contains("http=eighty"), "{message}");
}
