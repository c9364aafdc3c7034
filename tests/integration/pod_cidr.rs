//! UpdateRuntimeConfig: the pod CIDRs the kubelet sends become the default network's subnets.

use k8s_cri::v1::{NetworkConfig, RuntimeConfig, StatusRequest, UpdateRuntimeConfigRequest};
use libtest_mimic::Trial;
use tonic::Code;

use crate::network::web;
use crate::support::World;
use crate::support::world::{Answer, assert_code};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        pods_that_run_keep_their_addresses,
        what_was_told_outlives_the_daemon,
        what_makes_no_sense_is_refused_and_changes_nothing,
    ]
}

impl World {
    /// As the kubelet says it.
    pub(crate) async fn tell_cidr(&self, pod_cidr: &str) -> Answer<()> {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.into() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        self.runtime().update_runtime_config(request).await.map(|_| ())
    }

    /// What Status says of the default network's subnets.
    pub(crate) async fn subnets(&self) -> Vec<String> {
        let status = self.runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        let network: serde_json::Value = serde_json::from_str(&status.info["network"]).unwrap();
        network["subnets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|subnet| subnet.as_str().unwrap().to_owned())
            .collect()
    }

    async fn both_addresses(&self, id: &str) -> (String, Option<String>) {
        let network = self.pod_status(id).await.unwrap().network.unwrap();
        (network.ip, network.additional_ips.first().map(|ip| ip.ip.clone()))
    }
}

async fn pods_that_run_keep_their_addresses(world: &mut World) {
    let old = web(world, &world.pod("old")).await;
    let (old_v4, _) = world.both_addresses(&old).await;
    world.tell_cidr("10.244.3.0/24,fd44:3::/64").await.unwrap();
    assert_eq!(world.subnets().await, ["10.244.3.0/24", "fd44:3::/64"]);
    assert_eq!(world.address(&old).await, old_v4);
    let new = web(world, &world.pod("new")).await;
    let (new_v4, new_v6) = world.both_addresses(&new).await;
    assert_eq!((new_v4.as_str(), new_v6.as_deref()), ("10.244.3.2", Some("fd44:3::2")));
    let (client, id) = world.pod_with_sleeper("client").await;
    for address in [&old_v4, &new_v4] {
        assert_eq!(world.sh(&id, &format!("wget -q -O - http://{address}/")).await, "It works.");
        assert_eq!(world.fetch(&format!("{address}:80")).text(), "It works.\n");
    }
    // The same again, and nothing at all, change nothing.
    let bridge = world.netns.command("ip", &["addr", "show", "dev", "berth0"]);
    world.tell_cidr("10.244.3.0/24, fd44:3::/64").await.unwrap();
    world.tell_cidr("").await.unwrap();
    assert_eq!(world.netns.command("ip", &["addr", "show", "dev", "berth0"]), bridge);
    // IPv6 first, as a cluster may have it; the pods' first address follows.
    for id in [&old, &new, &client] {
        world.remove_pod(id).await.unwrap();
    }
    world.tell_cidr("fd44:4::/64,10.244.4.0/24").await.unwrap();
    let last = world.run_pod(&world.pod("last")).await.unwrap();
    assert_eq!(world.both_addresses(&last).await, ("fd44:4::2".into(), Some("10.244.4.2".into())));
}

async fn what_was_told_outlives_the_daemon(world: &mut World) {
    world.tell_cidr("10.244.3.0/24").await.unwrap();
    let before = web(world, &world.pod("before")).await;
    assert_eq!(world.both_addresses(&before).await, ("10.244.3.2".into(), None));
    world.crash_and_restart().await;
    assert_eq!(world.subnets().await, ["10.244.3.0/24"]);
    assert_eq!(world.fetch("10.244.3.2:80").text(), "It works.\n");
    let after = world.run_pod(&world.pod("after")).await.unwrap();
    assert_eq!(world.address(&after).await, "10.244.3.3");
    // Told of another one: the restart finds a subnet of before that is in use.
    world.tell_cidr("10.244.9.0/24").await.unwrap();
    world.restart().await;
    assert_eq!(world.fetch("10.244.3.2:80").text(), "It works.\n");
    let last = world.run_pod(&world.pod("last")).await.unwrap();
    assert_eq!(world.address(&last).await, "10.244.9.2");
}

async fn what_makes_no_sense_is_refused_and_changes_nothing(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let subnets = world.subnets().await;
    for (cidr, code, words) in [
        ("10.70.0.0/16", Code::FailedPrecondition, "overlaps 10.70.0.0/24 of network \"blue\""),
        ("300.0.0.0/8", Code::InvalidArgument, "no subnet"),
        ("::/0", Code::InvalidArgument, "prefix length"),
        ("10.244.3.7/24", Code::InvalidArgument, "10.244.3.0/24 is meant"),
        ("10.244.3.0/24,10.244.4.0/24", Code::InvalidArgument, "one for each family"),
        ("127.0.0.0/8", Code::InvalidArgument, "loopback"),
    ] {
        let message = assert_code(world.tell_cidr(cidr).await, code);
        assert!(message.contains(words), "{cidr}: {message}");
    }
    assert_eq!(world.subnets().await, subnets);
    let id = world.run_pod(&world.pod("as-before")).await.unwrap();
    assert!(world.address(&id).await.starts_with("10.85."));
    world.prune();
}
