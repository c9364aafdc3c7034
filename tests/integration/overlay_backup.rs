//! etcd is taken back to a backup while hosts go on: they notice, and put back what it has lost.

use std::collections::BTreeSet;
use std::net::IpAddr;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cluster::{Cluster, OUTSIDE, Underlay, eventually, trial};
use crate::overlay_pods::{everywhere, reaches};
use crate::support::World;

/// What the daemon says of it.
const SAID: &str = "etcd's data was replaced";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "overlay::hosts_put_back_what_a_restored_backup_lacks",
        2,
        Underlay::V4,
        hosts_put_back_what_a_restored_backup_lacks,
    )]
}

async fn hosts_put_back_what_a_restored_backup_lacks(cluster: &mut Cluster) {
    let (blue, red) = (json!({"name": "blue"}), json!({"name": "red"}));
    let create = ["network", "create", "-d", "overlay", "--subnet", "10.94.0.0/24", "-o", "block=30", "blue"];
    cluster.hosts[0].berth_ok(&create);
    everywhere(cluster, "blue");
    let early = cluster.hosts[0].overlay_pod("early", &blue).await;
    let gone = cluster.hosts[1].overlay_pod("gone", &blue).await;
    cluster.etcd.back_up();

    // What comes after: a pod less, blocks, a single address, and two networks, one of them in use.
    cluster.hosts[1].remove_pod(&gone.id).await.unwrap();
    let mut pods = vec![("early".to_owned(), early)];
    for (number, world) in cluster.hosts.iter().enumerate() {
        for round in 0..2 {
            let name = format!("late{number}{round}");
            pods.push((name.clone(), world.overlay_pod(&name, &blue).await));
        }
    }
    let single = json!({"name": "blue", "addresses": ["10.94.0.200"]});
    pods.push(("single".to_owned(), cluster.hosts[0].overlay_pod("single", &single).await));
    for name in ["red", "unused"] {
        cluster.hosts[0].berth_ok(&["network", "create", "-d", "overlay", name]);
        everywhere(cluster, name);
    }
    let mut on_red = Vec::new();
    for (number, world) in cluster.hosts.iter().enumerate() {
        let name = format!("red{number}");
        on_red.push((name.clone(), world.overlay_pod(&name, &red).await));
    }
    for (name, pod) in pods.iter().chain(&on_red) {
        pod.serve(80, name);
    }
    everybody_is_reached(&pods);
    let (held, endpoints, before) = (blocks(&cluster.hosts[1]), endpoints(cluster), cluster.etcd.revision());

    // The second host comes back when the new history is longer than what it has heard of the old one.
    cluster.hosts[1].netns.ip("link set uplink down");
    cluster.etcd.stop();
    cluster.etcd.restore();
    cluster.etcd.start();
    let lost = cluster.etcd.revision();
    assert!(lost < before, "{lost} {before}");
    eventually("the first host puts its pods back", || {
        let keys = self::endpoints(cluster);
        // The others' are those of the backup at most.
        let own: BTreeSet<_> = endpoints.iter().filter(|key| is_of(key, &pods[..3])).collect();
        if own.iter().all(|key| keys.contains(*key)) { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    while cluster.etcd.revision() <= before {
        cluster.etcd.ctl(&["put", "/elsewhere", "something"]);
    }
    cluster.hosts[1].netns.ip("link set uplink up");
    cluster.hosts[1].netns.ip(&format!("route replace default via {OUTSIDE}"));

    eventually("etcd says of all pods what is", || {
        let keys = self::endpoints(cluster);
        if keys == endpoints { Ok(()) } else { Err(format!("{keys:?} {endpoints:?}")) }
    });
    eventually("blocks and addresses are as they were", || {
        let now = blocks(&cluster.hosts[0]);
        if now == held { Ok(()) } else { Err(format!("{now:?} {held:?}")) }
    });
    everybody_is_reached(&pods);
    everybody_is_reached(&on_red);
    eventually("a network that nobody is on is as etcd has it", || {
        let names = cluster.hosts[0].berth_ok(&["network", "ls", "-q"]);
        if names.lines().any(|name| name == "unused") { Err(names) } else { Ok(()) }
    });
    // Grants go on from there: no address twice, on whatever host.
    let mut addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|(_, pod)| pod.addresses.clone()).collect();
    for (number, world) in cluster.hosts.iter().enumerate() {
        for round in 0..2 {
            let pod = world.overlay_pod(&format!("new{number}{round}"), &blue).await;
            assert!(addresses.insert(pod.addresses[0]), "{:?} is given out twice", pod.addresses);
        }
    }
    for world in &cluster.hosts {
        let log = world.daemon.log();
        assert_eq!(log.matches(SAID).count(), 1, "{log}");
    }
}

fn everybody_is_reached(pods: &[(String, crate::overlay_pods::Pod)]) {
    for (_, from) in [&pods[0], &pods[pods.len() - 1]] {
        for (name, to) in pods {
            reaches(&from.netns, to, 80, name);
        }
    }
}

/// Keys of endpoints, in their order.
fn endpoints(cluster: &Cluster) -> BTreeSet<String> {
    cluster.etcd.keys().into_iter().filter(|key| key.contains("/endpoints/")).collect()
}

fn is_of(key: &str, pods: &[(String, crate::overlay_pods::Pod)]) -> bool {
    pods.iter().any(|(_, pod)| key.ends_with(&pod.id))
}

/// Blocks and single addresses with their holders and epochs, as a host has heard of them.
fn blocks(world: &World) -> BTreeSet<String> {
    let text = world.berth_ok(&["network", "ipam", "blocks", "-o", "json"]);
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let blue = all.iter().filter(|block| block["network"] == "blue");
    blue.map(|block| format!("{} {} {}", block["block"], block["nodeId"], block["epoch"])).collect()
}
