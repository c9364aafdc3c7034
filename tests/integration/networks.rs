//! Networks that people make: through the client and the pods' annotations, connected and disconnected while they run, after
//! the daemon's death.

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tonic::Code;

use crate::network::web;
use crate::support::http;
use crate::support::spec::PodOptions;
use crate::support::world::assert_code;
use crate::support::{World, container};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        made_listed_inspected_and_removed,
        a_running_pod_is_connected_and_disconnected,
        pods_choose_their_networks,
        a_pod_without_a_network,
        run_with_networks,
        bad_choices_are_refused_and_leave_nothing,
        networks_outlive_the_daemon,
        pods_on_a_parent_interface,
        flushed_rules_and_lost_interfaces_come_back,
        a_diagram_is_drawn,
        bandwidth_annotations_become_queues,
    ]
}

impl World {
    pub(crate) fn inspect_network(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.berth_ok(&["network", "inspect", name])).unwrap();
        all[0].clone()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.berth(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
    }

    /// Takes the networks away that a test made.
    pub(crate) fn prune(&self) {
        self.berth_ok(&["network", "prune"]);
    }
}

async fn made_listed_inspected_and_removed(world: &mut World) {
    let create = |more: &[&str]| world.berth_ok(&[&["network", "create"], more].concat());
    assert_eq!(create(&["blue"]), "blue");
    create(&[
        "--subnet",
        "10.70.0.0/24",
        "--gateway",
        "10.70.0.9",
        "--ip-range",
        "10.70.0.128/25",
        "--aux-address",
        "router=10.70.0.129",
        "--ipv6",
        "--internal",
        "--opt",
        "com.docker.network.driver.mtu=1400",
        "--label",
        "team=red",
        "red",
    ]);
    assert_eq!(world.berth_ok(&["network", "ls", "-q"]), "blue\nbridge\nhost\nnone\nred");
    let red = world.inspect_network("red");
    assert_eq!(red["driver"], "bridge");
    assert_eq!((&red["internal"], &red["labels"]["team"]), (&json!(true), &json!("red")));
    assert_eq!(red["options"]["mtu"], "1400");
    assert_eq!(red["subnets"][0]["gateway"], "10.70.0.9");
    assert_eq!(red["subnets"][0]["auxAddresses"]["router"], "10.70.0.129");
    assert!(red["subnets"][1]["subnet"].as_str().unwrap().ends_with("::/64"));
    let mut pod = world.pod("pod");
    pod.annotations.insert("berth.dev/networks".into(), "red".into());
    let pod_id = world.run_pod(&pod).await.unwrap();
    assert_eq!(world.address(&pod_id).await, "10.70.0.128");
    let endpoint = &world.inspect_network("red")["endpoints"][0];
    assert_eq!((&endpoint["pod"], &endpoint["podId"]), (&json!("pod"), &json!(pod_id)));
    assert_eq!((&endpoint["mtu"], &endpoint["interface"]), (&json!(1400), &json!("eth0")));
    assert!(world.refused(&["network", "rm", "red"]).contains("in use by 1 endpoints"));
    let pools: Value =
        serde_json::from_str(&world.berth_ok(&["network", "ipam", "ls", "-o", "json"])).unwrap();
    let pool = pools.as_array().unwrap().iter().find(|pool| pool["subnet"] == "10.70.0.0/24").unwrap();
    assert_eq!(pool["leases"][0]["podId"], json!(pod_id));
    assert!(world.berth_ok(&["network", "ipam", "ls", "-a"]).contains("10.70.0.128"));
    world.remove_pod(&pod_id).await.unwrap();
    assert_eq!(world.berth_ok(&["network", "rm", "red"]), "red");
    assert_eq!(world.berth_ok(&["network", "prune"]), "blue");
    for (arguments, words) in [
        (&["network", "rm", "blue"][..], "does not exist"),
        (&["network", "rm", "bridge"], "built in"),
        (&["network", "create", "host"], "exists already"),
        (&["network", "create", "--subnet", "10.85.3.0/24", "x"], "overlaps 10.85.0.0/16"),
        (&["network", "create", "--subnet", "127.5.0.0/16", "x"], "no pod can have loopback addresses"),
        (&["network", "create", "-d", "macvlan", "--subnet", "10.71.0.0/24", "-o", "parent=no0", "x"], "no0"),
        (&["network", "inspect", "moon"], "moon"),
    ] {
        let said = world.refused(arguments);
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(world.berth_ok(&["network", "ls", "-q"]), "bridge\nhost\nnone");
}

async fn a_running_pod_is_connected_and_disconnected(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let server = web(world, &world.pod("server")).await;
    let (client, id) = world.pod_with_sleeper("client").await;
    let options =
        ["--ip", "10.70.0.7", "--mac-address", "02:00:00:00:00:07", "--interface", "lan", "--alias", "db"];
    world.berth_ok(&[&["network", "connect"][..], &options, &["blue", "server"]].concat());
    world.berth_ok(&["network", "connect", "blue", "client"]);
    world.berth_ok(&["network", "connect", "blue", "client"]);
    assert_eq!(world.sh(&id, "wget -q -O - http://10.70.0.7/").await, "It works.");
    assert!(world.sh(&id, "ip -o addr show dev eth1").await.contains("10.70.0."));
    let endpoints = world.inspect_network("blue")["endpoints"].clone();
    let of_server = endpoints.as_array().unwrap().iter().find(|e| e["pod"] == "server").unwrap();
    assert_eq!((&of_server["mac"], &of_server["interface"]), (&json!("02:00:00:00:00:07"), &json!("lan")));
    assert_eq!(of_server["aliases"], json!(["db"]));
    let said = world.refused(&["network", "connect", "--ip", "10.70.0.8", "blue", "server"]);
    assert!(said.contains("other options"), "{said}");
    // Off the network it joined first, it has the other's addresses.
    let before = world.address(&client).await;
    assert!(before.starts_with("10.85."));
    world.berth_ok(&["network", "disconnect", "bridge", "client"]);
    assert!(world.address(&client).await.starts_with("10.70.0."));
    assert_eq!(world.sh(&id, "ip -o link show dev eth0 2>/dev/null || echo gone").await, "gone");
    assert!(world.sh(&id, "ip route").await.contains("default via 10.70.0.1"));
    world.berth_ok(&["network", "disconnect", "blue", "server"]);
    let said = world.refused(&["network", "disconnect", "blue", "server"]);
    assert!(said.contains("not connected"), "{said}");
    world.stop_pod(&server).await.unwrap();
    assert!(world.refused(&["network", "connect", "blue", "server"]).contains("not ready"));
    for pod in [&client, &server] {
        world.remove_pod(pod).await.unwrap();
    }
    world.prune();
}

async fn pods_choose_their_networks(world: &mut World) {
    for (name, subnet) in [("blue", "10.70.0.0/24"), ("red", "10.71.0.0/24")] {
        world.berth_ok(&["network", "create", "--subnet", subnet, name]);
    }
    let mut pod = world.pod("several");
    let list = json!([{"name": "blue", "addresses": ["10.70.0.50"]}, {"name": "red", "interface": "back", "priority": 9}]);
    pod.annotations.insert("berth.dev/networks".into(), list.to_string());
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18090, 80);
    let pod_id = web(world, &pod).await;
    let id = world.sleeper(&pod_id, &pod).await;
    assert_eq!(world.address(&pod_id).await, "10.70.0.50");
    assert_eq!(world.fetch("127.0.0.1:18090").text(), "It works.\n");
    let routes = world.sh(&id, "ip route get 192.0.2.77").await;
    assert!(routes.contains("dev back"), "{routes}");
    // The form that Multus users write: beside the default network.
    let mut other = world.pod("additional");
    other.annotations.insert("k8s.v1.cni.cncf.io/networks".into(), "default/blue, red@lan".into());
    let other_id = world.run_pod(&other).await.unwrap();
    let id = world.sleeper(&other_id, &other).await;
    assert!(world.address(&other_id).await.starts_with("10.85."));
    assert_eq!(world.sh(&id, "wget -q -O - http://10.70.0.50/").await, "It works.");
    let interfaces = world.sh(&id, "ls /sys/class/net").await;
    assert_eq!(interfaces.split_whitespace().collect::<Vec<_>>(), ["eth0", "lan", "lo", "net1"]);
    // Isolated: the default network does not reach the others.
    let (_, id) = world.pod_with_sleeper("stranger").await;
    let answer = world.sh(&id, "timeout 2 wget -q -O - http://10.70.0.50/ || echo no way").await;
    assert_eq!(answer, "no way");
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    world.prune();
}

async fn a_pod_without_a_network(world: &mut World) {
    let mut pod = world.pod("lonely");
    pod.annotations.insert("berth.dev/networks".into(), "none".into());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.sleeper(&pod_id, &pod).await;
    assert_eq!(world.sh(&id, "ls /sys/class/net").await, "lo");
    assert!(world.sh(&id, "ip -o link show lo").await.contains("UP"));
    assert_eq!(world.pod_status(&pod_id).await.unwrap().network.unwrap().ip, "");
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, "ls /sys/class/net").await, "lo");
}

async fn run_with_networks(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let image = world.reference("busybox");
    let addresses = world.berth_ok(&[
        "run",
        "--rm",
        "--network",
        "name=blue,ip=10.70.0.33",
        "--network",
        "bridge",
        &image,
        "ip",
        "-o",
        "-4",
        "addr",
    ]);
    assert!(addresses.contains("10.70.0.33/24") && addresses.contains("10.85.0."), "{addresses}");
    let links = world.berth_ok(&["run", "--rm", "--network", "none", &image, "ls", "/sys/class/net"]);
    assert_eq!(links, "lo");
    let said = world.refused(&["run", "--rm", "--network", "moon", &image, "true"]);
    assert!(said.contains("network \"moon\" does not exist"), "{said}");
    world.prune();
}

async fn bad_choices_are_refused_and_leave_nothing(world: &mut World) {
    world.berth_ok(&["network", "create", "--internal", "--subnet", "10.70.0.0/29", "inner"]);
    let before = (world.netns.ip("-o link"), world.netns.command("nft", &["list", "ruleset"]));
    let annotated = |annotation: &str, text: &str| {
        let mut pod = world.pod("bad");
        pod.annotations.insert(annotation.into(), text.into());
        pod
    };
    for (annotation, text, code) in [
        ("berth.dev/networks", "[{", Code::InvalidArgument),
        ("berth.dev/networks", "inner,inner", Code::InvalidArgument),
        ("berth.dev/networks", "host", Code::InvalidArgument),
        ("berth.dev/networks", "moon", Code::NotFound),
        ("berth.dev/networks", "bridge,moon", Code::NotFound),
        ("berth.dev/networks", r#"[{"name": "inner", "addresses": ["10.9.9.9"]}]"#, Code::InvalidArgument),
        ("berth.dev/networks", r#"[{"name": "inner", "addresses": ["10.70.0.1"]}]"#, Code::InvalidArgument),
        ("k8s.v1.cni.cncf.io/networks", r#"[{"name": "inner", "bandwidth": {}}]"#, Code::InvalidArgument),
    ] {
        let message = assert_code(world.run_pod(&annotated(annotation, text)).await, code);
        assert!(!message.is_empty() && message.lines().count() == 1, "{message}");
    }
    let mut published = annotated("berth.dev/networks", "inner");
    published.publish(k8s_cri::v1::Protocol::Tcp, 18091, 80);
    let message = assert_code(world.run_pod(&published).await, Code::InvalidArgument);
    assert!(message.contains("18091"), "{message}");
    let mut local = world.pod("bad");
    local.publish(k8s_cri::v1::Protocol::Tcp, 18092, 80);
    local.port_mappings[0].host_ip = "::1".into();
    let message = assert_code(world.run_pod(&local).await, Code::InvalidArgument);
    assert!(message.contains("18092") && message.contains("publish it on 127.0.0.1"), "{message}");
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut pod = world.pod(&format!("full-{number}"));
        pod.annotations.insert("berth.dev/networks".into(), "inner".into());
        ids.push(world.run_pod(&pod).await.unwrap());
    }
    let late = annotated("berth.dev/networks", "inner");
    assert_code(world.run_pod(&late).await, Code::ResourceExhausted);
    for id in ids {
        world.remove_pod(&id).await.unwrap();
    }
    let after = || (world.netns.ip("-o link"), world.netns.command("nft", &["list", "ruleset"]));
    let names = |text: &str| {
        text.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect::<Vec<_>>()
    };
    let deadline = crate::support::within(10);
    while names(&after().0) != names(&before.0) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!((names(&after().0), after().1), (names(&before.0), before.1));
    world.prune();
}

async fn networks_outlive_the_daemon(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "-o", "icc=false", "blue"]);
    let mut pod = world.pod("web");
    pod.annotations.insert("berth.dev/networks".into(), "bridge,blue".into());
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18092, 80);
    web(world, &pod).await;
    let before = world.inspect_network("blue");
    world.fetch("127.0.0.1:18092");
    world.daemon.kill();
    let address =
        before["endpoints"][0]["addresses"][0].as_str().unwrap().split('/').next().unwrap().to_owned();
    assert_eq!(world.fetch(&format!("{address}:80")).text(), "It works.\n", "without a daemon");
    world.daemon.spawn();
    world.ready().await;
    assert_eq!(world.inspect_network("blue"), before);
    assert_eq!(world.fetch(&format!("{address}:80")).text(), "It works.\n");
    world.netns.run(|| http::get("127.0.0.1:18092", "/")).unwrap();
    // Half-made networks and pods are undone whole.
    for round in 0..4_u64 {
        let mut late = world.pod(&format!("late-{round}"));
        late.annotations.insert("berth.dev/networks".into(), "bridge,blue".into());
        let mut client = world.runtime();
        let request =
            k8s_cri::v1::RunPodSandboxRequest { config: Some(late), runtime_handler: String::new() };
        let call =
            tokio::spawn(
                async move { client.run_pod_sandbox(request).await.map(|answer| answer.into_inner()) },
            );
        tokio::time::sleep(std::time::Duration::from_millis(5 + 9 * round)).await;
        world.daemon.kill();
        if let Ok(Ok(answer)) = call.await {
            world.remember(&answer.pod_sandbox_id);
        }
        world.daemon.spawn();
        world.ready().await;
        let attached = world.inspect_network("blue")["endpoints"].as_array().unwrap().len();
        assert_eq!(attached, world.list_pods().await.unwrap().len(), "whole or gone");
    }
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    world.prune();
}

async fn pods_on_a_parent_interface(world: &mut World) {
    let neighbour = crate::support::netns::Netns::new();
    world.netns.connect(&neighbour, "uplink");
    neighbour.ip("addr add 198.51.100.1/24 dev uplink");
    world.berth_ok(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "198.51.100.0/24",
        "-o",
        "parent=uplink",
        "lan",
    ]);
    let mut pod = world.pod("neighbour");
    pod.annotations.insert("berth.dev/networks".into(), "lan".into());
    let pod_id = web(world, &pod).await;
    let address = world.address(&pod_id).await;
    let deadline = crate::support::within(10);
    // The server needs a moment to listen.
    while neighbour.run(|| http::get(format!("{address}:80"), "/")).is_err() {
        assert!(std::time::Instant::now() < deadline, "no answer from {address}");
    }
    world.crash_and_restart().await;
    assert_eq!(neighbour.run(|| http::get(format!("{address}:80"), "/")).unwrap().text(), "It works.\n");
    world.remove_pod(&pod_id).await.unwrap();
    world.prune();
}

async fn flushed_rules_and_lost_interfaces_come_back(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let mut pod = world.pod("web");
    pod.annotations.insert("berth.dev/networks".into(), "blue".into());
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18093, 80);
    let image = world.image("web").await;
    let pod_id = world.run_pod(&pod).await.unwrap();
    world.launch(&pod_id, &pod, &container("web", &image, &[])).await.unwrap();
    world.fetch("127.0.0.1:18093");
    world.netns.command("nft", &["add", "table", "ip", "somebodys"]);
    world.netns.command("nft", &["delete", "table", "inet", "berth"]);
    // Noticed at once, without anybody's asking.
    assert_eq!(world.fetch("127.0.0.1:18093").text(), "It works.\n");
    assert!(world.netns.command("nft", &["list", "tables"]).contains("somebodys"));
    world.netns.command("nft", &["flush", "chain", "inet", "berth", "prerouting"]);
    assert_eq!(world.fetch("127.0.0.1:18093").text(), "It works.\n");
    let deadline = crate::support::within(10);
    while !world.netns.command("nft", &["list", "chain", "inet", "berth", "prerouting"]).contains("jump") {
        assert!(std::time::Instant::now() < deadline, "a flushed chain is filled again");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let bridge = world.inspect_network("blue")["options"]["bridge"].as_str().unwrap().to_owned();
    world.netns.ip(&format!("link del {bridge}"));
    // Unless the look that the flush caused has been faster.
    world.berth_ok(&["network", "ipam", "gc"]);
    assert!(world.netns.ip(&format!("-o link show master {bridge}")).contains("UP"));
    assert_eq!(world.fetch("127.0.0.1:18093").text(), "It works.\n");
    world.remove_pod(&pod_id).await.unwrap();
    world.prune();
}

async fn a_diagram_is_drawn(world: &mut World) {
    world.berth_ok(&["network", "create", "blue"]);
    let mut pod = world.pod("drawn");
    pod.annotations.insert("berth.dev/networks".into(), "bridge,blue".into());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let address = world.address(&pod_id).await;
    let file = world.run.join("networks.svg");
    world.berth_ok(&["network", "diagram", "-o", file.to_str().unwrap()]);
    let picture = std::fs::read_to_string(file).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    assert!(
        picture.contains("default/drawn") && picture.contains(&address) && picture.contains("blue (bridge)")
    );
    assert_eq!(picture.matches("class=\"endpoint\"").count(), 2);
    world.remove_pod(&pod_id).await.unwrap();
    world.prune();
}

async fn bandwidth_annotations_become_queues(world: &mut World) {
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let limited = |networks: &str, ingress: &str, egress: &str| {
        let mut pod = world.pod("limited");
        pod.annotations.insert("berth.dev/networks".into(), networks.into());
        pod.annotations.insert("kubernetes.io/ingress-bandwidth".into(), ingress.into());
        pod.annotations.insert("kubernetes.io/egress-bandwidth".into(), egress.into());
        pod
    };
    for (ingress, egress, named) in
        [("fast", "1M", "ingress"), ("1M", "10", "egress"), ("1M", "2P", "egress")]
    {
        let message =
            assert_code(world.run_pod(&limited("bridge", ingress, egress)).await, Code::InvalidArgument);
        assert!(message.contains(&format!("kubernetes.io/{named}-bandwidth")), "{message}");
    }
    let queues = |world: &World| -> Vec<String> {
        let all = world.netns.command("tc", &["qdisc", "show"]);
        all.lines().filter(|line| line.contains("tbf")).map(str::to_owned).collect()
    };
    let config = limited("bridge,blue", "10M", "20M");
    let pod = world.run_pod(&config).await.unwrap();
    let before = queues(world);
    assert!(before.len() == 2 && before.iter().all(|line| line.contains("rate 10Mbit")), "{before:?}");
    let netns = world.daemon.state.join("pods").join(&pod).join("ns/net");
    let inside = || {
        let netns = format!("--net={}", netns.display());
        let all = world.netns.command("nsenter", &[&netns, "tc", "qdisc", "show"]);
        all.matches("rate 20Mbit").count()
    };
    assert_eq!(inside(), 2);
    world.crash_and_restart().await;
    assert_eq!(queues(world), before);
    world.remove_pod(&pod).await.unwrap();
    let deadline = crate::support::within(10);
    while !queues(world).is_empty() {
        assert!(std::time::Instant::now() < deadline, "queues of a removed pod");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    world.prune();
}
