//! Bandwidth limits: the queues that the kernel shows, and what passes them.

use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use berth_cni::{Bandwidth, EndpointOptions, Kind, SandboxSpec};

use crate::{
    drivers::{create, kernel_has, lan, request},
    host::{Host, Netns, links, run},
};

fn limited(ingress: Option<u64>, egress: Option<u64>) -> EndpointOptions {
    EndpointOptions { bandwidth: Bandwidth { ingress, egress }, ..EndpointOptions::default() }
}

/// Queues that somebody set, by interface. Names differ; what follows them does not.
fn queues() -> Vec<String> {
    let all = run("tc qdisc show");
    let set = all.lines().filter(|line| !line.contains("noqueue"));
    set.map(|line| {
        line.split(" refcnt").next().unwrap().to_owned() + line.split("root").nth(1).unwrap_or_default()
    })
    .collect()
}

#[test]
fn limits_are_queues_at_both_ends_and_go_with_the_pod() {
    Host::test(|host| {
        let before = queues();
        let cni = host.dual();
        let plain = host.pod(&cni, EndpointOptions::default());
        assert_eq!((queues(), plain.netns.within(queues).len()), (before.clone(), 0));
        let pod = host.pod(&cni, limited(Some(8_000_000), Some(16_000_000)));
        let of_pod = |found: Vec<String>| -> Vec<String> {
            found.into_iter().filter(|line| !before.contains(line)).collect()
        };
        let seen = of_pod(queues());
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].starts_with("qdisc tbf 1: dev berth") && seen[0].contains("rate 8Mbit"), "{seen:?}");
        let inside = pod.netns.within(queues);
        assert!(
            inside.len() == 1 && inside[0].contains("dev eth0") && inside[0].contains("rate 16Mbit"),
            "{inside:?}"
        );
        // Joining again changes nothing, and other limits are another endpoint.
        host.runtime.block_on(async {
            cni.join(&pod.id, "bridge", limited(Some(8_000_000), Some(16_000_000))).await.unwrap();
            let error = cni.join(&pod.id, "bridge", limited(Some(1_000_000), None)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::AlreadyExists);
        });
        // The controller's end changes nothing; its successor mends what somebody took away.
        drop(cni);
        assert_eq!(of_pod(queues()), seen);
        let name = pod.endpoint.host_interface.clone().unwrap();
        run(&format!("tc qdisc del dev {name} root"));
        let cni = host.dual();
        let live = [pod.id.clone(), plain.id.clone()].into();
        let report = host.runtime.block_on(cni.reconcile(&live)).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(of_pod(queues()), seen);
        let only_in = host.pod(&cni, limited(Some(20_000_000_000), None));
        assert!(of_pod(queues()).iter().any(|line| line.contains("rate 20Gbit")), "{:?}", queues());
        assert_eq!(only_in.netns.within(queues).len(), 0);
        for id in [&pod.id, &plain.id, &only_in.id] {
            host.delete(&cni, id);
        }
        drop((pod, plain, only_in));
        host.finish(cni);
        assert_eq!(queues(), before);
    });
}

/// So many bytes over TCP from here to an address, or back when `upwards`; `serving` runs where that address is.
fn transfer(
    serving: &Netns,
    calling: &Netns,
    address: IpAddr,
    bytes: usize,
    upwards: bool,
) -> std::time::Duration {
    let listener = serving.within(|| TcpListener::bind((address, 0))).unwrap();
    let place = listener.local_addr().unwrap();
    let at_pod = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        if upwards {
            stream.write_all(&vec![7; bytes]).unwrap();
        } else {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), bytes);
        }
    });
    let begin = Instant::now();
    let mut stream = calling.within(|| TcpStream::connect(place)).unwrap();
    if upwards {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), bytes);
    } else {
        stream.write_all(&vec![7; bytes]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    at_pod.join().unwrap();
    begin.elapsed()
}

/// Interfaces without another end on the host have their limits inside.
fn limits_are_inside(host: &Host, driver: &str, mode: &str) {
    const BYTES: usize = 500_000;
    let cni = host.dual();
    let options = [("parent", "lan0"), ("mode", mode)];
    create(host, &cni, request("lan", driver, &["198.51.100.0/24", "2001:db8:1::/64"], &options));
    let before = queues();
    let pod = Netns::new();
    let join = |limits| async {
        cni.create_sandbox(SandboxSpec { id: "pod".into(), netns: pod.path() }).await.unwrap();
        cni.join("pod", "lan", limits).await
    };
    let endpoint = host.runtime.block_on(async {
        // 4 Mbit/s: a second for these bytes, less what the bucket holds.
        let endpoint = join(limited(Some(4_000_000), Some(8_000_000))).await.unwrap();
        // Joining again changes nothing, and other limits are another endpoint.
        assert_eq!(join(limited(Some(4_000_000), Some(8_000_000))).await.unwrap(), endpoint);
        let other = join(limited(Some(4_000_000), None)).await.unwrap_err();
        assert_eq!(other.kind(), Kind::AlreadyExists);
        endpoint
    });
    assert_eq!(queues(), before, "nothing shows on the host");
    let inside = || {
        let all = pod.within(|| run("tc qdisc show"));
        let mut lines: Vec<_> = all.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let set = inside();
    let has = |what: &str, rate: &str| set.iter().any(|line| line.contains(what) && line.contains(rate));
    assert!(
        has("tbf 1: dev eth0 root", "rate 8Mbit") && has("tbf 1: dev ifb-eth0 root", "rate 4Mbit"),
        "{set:?}"
    );
    assert!(has("ingress ffff: dev eth0", ""), "{set:?}");
    let filters = pod.within(|| run("tc filter show dev eth0 ingress"));
    assert_eq!(filters.matches("Egress Redirect to device ifb-eth0").count(), 1, "{filters}");
    assert!(!pod.within(|| run("ip addr show dev ifb-eth0")).contains("inet"), "it has no address");
    // Whatever the mode: the other side is beyond the parent.
    if mode != "l3" {
        for address in endpoint.addresses.iter().map(ipnetwork::IpNetwork::ip) {
            let received = transfer(&pod, &host.outside, address, BYTES, false);
            let sent = transfer(&pod, &host.outside, address, BYTES, true);
            assert!(received.as_secs_f64() > 0.5 && sent.as_secs_f64() > 0.25, "{received:?} {sent:?}");
        }
    }
    // The limits' own interface is none of the pod's.
    let traffic = host.runtime.block_on(cni.traffic()).unwrap();
    assert_eq!(traffic["pod"].iter().map(|one| one.interface.as_str()).collect::<Vec<_>>(), ["eth0"]);
    // Lost and made again, with its limits.
    pod.within(|| run("ip link del eth0"));
    let report = host.runtime.block_on(cni.reconcile(&["pod".to_owned()].into())).unwrap();
    assert_eq!(report.restored_endpoints, [("pod".to_owned(), "lan".to_owned())], "{report:?}");
    assert_eq!(inside(), set);
    host.runtime.block_on(cni.leave("pod", "lan")).unwrap();
    assert_eq!(pod.within(|| (links("eth0"), links("ifb"))), (Vec::new(), Vec::new()));
    host.delete(&cni, "pod");
    // Its definition outlives the controller.
    host.runtime.block_on(cni.delete_network("lan")).unwrap();
    host.finish(cni);
}

#[test]
fn limits_of_a_macvlan_are_inside_and_go_with_it() {
    Host::test(|host| {
        lan(host);
        limits_are_inside(host, "macvlan", "bridge");
    });
}

#[test]
fn limits_of_an_ipvlan_are_inside_and_go_with_it() {
    Host::test(|host| {
        if !kernel_has("ipvlan") {
            println!("skipped: this kernel has no ipvlan");
            return;
        }
        lan(host);
        for mode in ["l2", "l3"] {
            limits_are_inside(host, "ipvlan", mode);
        }
        // What comes in by this one passes no queue.
        let cni = host.dual();
        let options = [("parent", "lan0"), ("mode", "l3s")];
        create(host, &cni, request("lan", "ipvlan", &["198.51.100.0/24"], &options));
        let netns = Netns::new();
        host.runtime.block_on(async {
            cni.create_sandbox(SandboxSpec { id: "pod".into(), netns: netns.path() }).await.unwrap();
            let error = cni.join("pod", "lan", limited(Some(1_000_000), None)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("mode l3s"), "{error}");
            cni.join("pod", "lan", limited(None, Some(1_000_000))).await.unwrap();
        });
        assert!(netns.within(|| run("tc qdisc show dev eth0")).contains("rate 1Mbit"));
        host.delete(&cni, "pod");
        host.finish(cni);
    });
}

/// Generous: a limited way takes at least half of the time that it should, and an unlimited one is not that slow.
#[test]
fn a_limited_way_is_slower() {
    const BYTES: usize = 1_000_000;
    Host::test(|host| {
        let cni = host.dual();
        // 4 Mbit/s: two seconds for these bytes, less what the bucket holds.
        let pod = host.pod(&cni, limited(Some(4_000_000), Some(4_000_000)));
        let own = Netns::current();
        for upwards in [false, true] {
            let took = transfer(&pod.netns, &own, pod.v4(), BYTES, upwards);
            assert!(took.as_secs_f64() > 1.0, "upwards: {upwards}, {took:?}");
        }
        host.delete(&cni, &pod.id);
        drop(pod);
        host.finish(cni);
    });
}
