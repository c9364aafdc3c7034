//! Networks that somebody made: isolation and modes of bridges, interfaces on top of others, several endpoints.

use berth_cni::{
    Controller, EndpointOptions, Kind, NetworkRequest, Protocol, SandboxSpec, model::SubnetOptions,
};

use crate::host::{Host, Netns, eventually, links, port, publish, run, serve, tcp};

pub(crate) fn request(
    name: &str,
    driver: &str,
    subnets: &[&str],
    options: &[(&str, &str)],
) -> NetworkRequest {
    NetworkRequest {
        name: name.into(),
        driver: driver.into(),
        subnets: subnets.iter().map(|subnet| SubnetOptions::new(subnet.parse().unwrap())).collect(),
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..NetworkRequest::default()
    }
}

/// A sandbox that has joined networks, the first as `eth0`, the second as `eth1`, and so on.
fn joined(host: &Host, cni: &Controller, id: &str, networks: &[&str]) -> (Netns, Vec<berth_cni::Endpoint>) {
    let netns = Netns::new();
    let endpoints = host.runtime.block_on(async {
        cni.create_sandbox(SandboxSpec { id: id.into(), netns: netns.path() }).await.unwrap();
        let mut endpoints = Vec::new();
        for (number, network) in networks.iter().enumerate() {
            let options = EndpointOptions { interface: format!("eth{number}"), ..EndpointOptions::default() };
            endpoints.push(cni.join(id, network, options).await.unwrap());
        }
        endpoints
    });
    (netns, endpoints)
}

pub(crate) fn create(host: &Host, cni: &Controller, request: NetworkRequest) {
    host.runtime.block_on(cni.create(request)).unwrap();
}

#[test]
fn bridges_are_isolated_and_published_ports_lead_through() {
    Host::test(|host| {
        let cni = host.dual();
        create(
            host,
            &cni,
            request("blue", "bridge", &["10.90.0.0/24", "fd90::/64"], &[("bridge", "berthb")]),
        );
        create(host, &cni, request("red", "", &[], &[("bridge", "berthr")]));
        let red = cni.network("red").unwrap();
        assert_eq!(red.subnets()[0].subnet.to_string(), "10.86.0.0/24", "chosen");
        let (a, _) = joined(host, &cni, "a", &["blue"]);
        let (b, b_ends) = joined(host, &cni, "b", &["blue"]);
        let (c, c_ends) = joined(host, &cni, "c", &["red"]);
        let (both, both_ends) = joined(host, &cni, "both", &["blue", "red"]);
        for (netns, name) in [(&b, "b"), (&c, "c"), (&both, "both")] {
            netns.within(|| serve(name, 80));
        }
        let default = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        default.serve(80);
        host.outside.within(|| serve("outside", 7001));
        a.within(|| {
            for address in &b_ends[0].addresses {
                assert!(tcp(address.ip(), 80).unwrap().starts_with("b "), "within the network");
            }
            assert!(tcp(c_ends[0].addresses[0].ip(), 80).is_err(), "another network");
            assert!(tcp(both_ends[1].addresses[0].ip(), 80).is_err(), "its address on another network");
            assert!(tcp(both_ends[0].addresses[0].ip(), 80).unwrap().starts_with("both "));
            assert!(tcp(default.v4(), 80).is_err() && tcp(default.v6(), 80).is_err(), "the default network");
            assert!(tcp([192, 0, 2, 1], 8080).unwrap().starts_with("pod0 "), "by its published port");
            assert_eq!(tcp([192, 0, 2, 2], 7001).unwrap(), "outside 192.0.2.1", "the way out");
        });
        // The administrator's chain comes first, and stays when ours is written anew.
        run("nft add rule inet berth admin ip daddr 192.0.2.2 drop");
        a.within(|| assert!(tcp([192, 0, 2, 2], 7001).is_err()));
        run("nft flush chain inet berth forward");
        host.runtime
            .block_on(cni.reconcile_with(|| ["a", "b", "c", "both", "pod0"].map(str::to_owned).into()))
            .unwrap();
        a.within(|| {
            assert!(tcp([192, 0, 2, 2], 7001).is_err());
            assert!(tcp(c_ends[0].addresses[0].ip(), 80).is_err(), "isolation is back");
        });
        for id in ["a", "b", "c", "both", "pod0"] {
            host.delete(&cni, id);
        }
        let (removed, errors) = host.runtime.block_on(cni.prune()).unwrap();
        assert_eq!((removed, errors.len()), (vec!["blue".to_owned(), "red".to_owned()], 0));
        assert!(links("berthb").is_empty() && links("berthr").is_empty());
        host.finish(cni);
    });
}

#[test]
fn internal_routed_and_without_traffic_between_containers() {
    Host::test(|host| {
        let cni = host.dual();
        let inner = NetworkRequest { internal: true, ..request("inner", "", &["10.91.0.0/24"], &[]) };
        create(host, &cni, inner);
        create(host, &cni, request("routed", "", &["10.92.0.0/24"], &[("mode", "routed")]));
        create(host, &cni, request("alone", "", &["10.93.0.0/24", "fd93::/64"], &[("icc", "false")]));
        host.outside.within(|| {
            run("ip route add 10.91.0.0/24 via 192.0.2.1");
            run("ip route add 10.92.0.0/24 via 192.0.2.1");
            serve("outside", 7001);
        });
        serve("host", 7000);

        let (a, a_ends) = joined(host, &cni, "a", &["inner"]);
        let (b, b_ends) = joined(host, &cni, "b", &["inner"]);
        b.within(|| serve("b", 80));
        assert!(!a_ends[0].default_route);
        a.within(|| {
            assert!(!run("ip route").contains("default"));
            assert!(tcp(b_ends[0].addresses[0].ip(), 80).is_ok());
            assert!(tcp([10, 91, 0, 1], 7000).is_ok(), "the host");
            run("ip route add default via 10.91.0.1");
            assert!(tcp([192, 0, 2, 2], 7001).is_err(), "not even with a route of its own making");
        });
        host.outside.within(|| assert!(tcp(b_ends[0].addresses[0].ip(), 80).is_err()));

        let (c, c_ends) = joined(host, &cni, "c", &["routed"]);
        c.within(|| serve("c", 80));
        let own = c_ends[0].addresses[0].ip();
        c.within(|| assert_eq!(tcp([192, 0, 2, 2], 7001).unwrap(), format!("outside {own}")));
        host.outside.within(|| assert!(tcp(own, 80).is_ok()));

        let (d, d_ends) = joined(host, &cni, "d", &["alone"]);
        let (e, _) = joined(host, &cni, "e", &["alone"]);
        d.within(|| serve("d", 80));
        e.within(|| {
            for address in &d_ends[0].addresses {
                assert!(tcp(address.ip(), 80).is_err(), "{address}");
            }
            // Neither by way of the gateway.
            run(&format!("ip route add {} via 10.93.0.1", d_ends[0].addresses[0].ip()));
            assert!(tcp(d_ends[0].addresses[0].ip(), 80).is_err());
            assert!(tcp([192, 0, 2, 2], 7001).is_ok(), "the way out");
        });
        for id in ["a", "b", "c", "d", "e"] {
            host.delete(&cni, id);
        }
        host.finish(cni);
    });
}

#[test]
fn of_several_endpoints_the_first_or_the_highest_priority_has_the_default_route() {
    Host::test(|host| {
        let cni = host.dual();
        for (name, subnet) in [("blue", "10.90.0.0/24"), ("red", "10.91.0.0/24")] {
            create(host, &cni, request(name, "", &[subnet], &[]));
        }
        let (pod, _) = joined(host, &cni, "pod", &["bridge", "blue"]);
        let way = || pod.within(|| run("ip -o route get 192.0.2.2"));
        assert!(way().contains("dev eth0"), "{}", way());
        host.runtime.block_on(async {
            let options = EndpointOptions {
                interface: "eth2".into(),
                priority: 5,
                mac: Some([0x02, 1, 2, 3, 4, 5]),
                addresses: vec!["10.91.0.77".parse().unwrap()],
                aliases: vec!["db".into()],
                ..EndpointOptions::default()
            };
            let endpoint = cni.join("pod", "red", options.clone()).await.unwrap();
            assert_eq!(endpoint.addresses[0].to_string(), "10.91.0.77/24");
            assert_eq!(cni.join("pod", "red", options).await.unwrap(), endpoint, "again is the same");
        });
        assert!(way().contains("dev eth2"), "{}", way());
        assert!(pod.within(|| run("ip -o link show eth2")).contains("02:01:02:03:04:05"));
        host.runtime.block_on(async {
            cni.leave("pod", "red").await.unwrap();
            assert!(way().contains("dev eth0"), "{}", way());
            cni.leave("pod", "bridge").await.unwrap();
            assert!(way().contains("dev eth1"), "{}", way());
            let status = cni.status("blue").unwrap();
            assert_eq!(status.endpoints.len(), 1);
            assert_eq!((status.endpoints[0].0.as_str(), status.built_in), ("pod", false));
            let bad = EndpointOptions { priority: 51, ..EndpointOptions::default() };
            assert_eq!(cni.join("pod", "bridge", bad).await.unwrap_err().kind(), Kind::InvalidArgument);
            cni.delete_sandbox("pod").await.unwrap();
        });
        host.finish(cni);
    });
}

/// Two hosts' interfaces on one switch: `lan0` is ours, `lan0` outside has 198.51.100.1.
pub(crate) fn lan(host: &Host) {
    run(&format!("ip link add lan0 type veth peer name lan0 netns {}", host.outside.path().display()));
    run("ip link set lan0 up");
    host.outside.within(|| {
        run("ip addr add 198.51.100.1/24 dev lan0");
        run("ip -6 addr add 2001:db8:1::1/64 dev lan0 nodad");
        run("ip link set lan0 up");
    });
}

#[test]
fn macvlan_endpoints_are_neighbours_of_the_parents_network() {
    Host::test(|host| {
        lan(host);
        host.outside.within(|| serve("lan", 7002));
        let cni = host.dual();
        let subnets = ["198.51.100.0/24", "2001:db8:1::/64"];
        create(host, &cni, request("lan", "macvlan", &subnets, &[("parent", "lan0")]));
        let (a, a_ends) = joined(host, &cni, "a", &["lan"]);
        let (b, b_ends) = joined(host, &cni, "b", &["lan", "bridge"]);
        b.within(|| serve("b", 80));
        a.within(|| {
            let own = a_ends[0].addresses[0].ip();
            assert_eq!(tcp([198, 51, 100, 1], 7002).unwrap(), format!("lan {own}"));
            assert!(tcp("2001:db8:1::1".parse::<std::net::IpAddr>().unwrap(), 7002).is_ok());
            assert!(tcp(b_ends[0].addresses[0].ip(), 80).unwrap().starts_with("b "), "bridge mode");
            assert!(run("ip route").contains("default via 198.51.100.1 dev eth0"));
        });
        let traffic = host.runtime.block_on(cni.traffic()).unwrap();
        let of_b: Vec<_> = traffic["b"].iter().map(|one| one.interface.as_str()).collect();
        assert_eq!(of_b, ["eth0", "eth1"]);
        assert!(traffic["b"][0].received.bytes > 0 && traffic["a"][0].sent.packets > 0, "{traffic:?}");
        // Lost and found again; what is right is not touched.
        let live = || ["a", "b"].map(str::to_owned).into();
        b.within(|| run("ip link del eth0"));
        let report = host.runtime.block_on(cni.reconcile_with(live)).unwrap();
        assert_eq!(report.restored_endpoints, [("b".to_owned(), "lan".to_owned())], "{report:?}");
        a.within(|| assert!(tcp(b_ends[0].addresses[0].ip(), 80).is_ok()));
        let report = host.runtime.block_on(cni.reconcile_with(live)).unwrap();
        assert!(report.restored_endpoints.is_empty() && report.errors.is_empty(), "{report:?}");

        host.runtime.block_on(async {
            let refused = async |options| cni.join("a", "lan", options).await.unwrap_err();
            assert_eq!(refused(publish([port(Protocol::Tcp, 8080, 80)])).await.kind(), Kind::AlreadyExists);
            cni.leave("a", "lan").await.unwrap();
            let error = refused(publish([port(Protocol::Tcp, 8080, 80)])).await;
            assert!(error.to_string().contains("past the host's firewall"), "{error}");
            let error =
                cni.create(request("other", "macvlan", &["10.1.0.0/24"], &[("parent", "lan0")])).await;
            assert!(error.unwrap_err().to_string().contains("network \"lan\" has it"));
            let error =
                cni.create(request("other", "macvlan", &["10.1.0.0/24"], &[("parent", "lan9")])).await;
            assert_eq!(
                error.unwrap_err().to_string(),
                "parent interface \"lan9\" does not exist on this host"
            );
        });
        assert!(a.within(|| links("eth0")).is_empty(), "leave waits for the interface");
        host.delete(&cni, "b");
        assert!(b.within(|| links("eth0")).is_empty(), "an address is free when nobody has it");
        host.finish(cni);
    });
}

#[test]
fn macvlan_modes() {
    Host::test(|host| {
        lan(host);
        host.outside.within(|| serve("lan", 7002));
        let cni = host.dual();
        for mode in ["private", "vepa", "passthru"] {
            let options = [("parent", "lan0"), ("mode", mode), ("mtu", "1400")];
            create(host, &cni, request("lan", "macvlan", &["198.51.100.0/24"], &options));
            let (a, a_ends) = joined(host, &cni, "a", &["lan"]);
            a.within(|| {
                assert!(run("ip -d link show eth0").contains(&format!("mode {mode}")));
                assert!(run("ip link show eth0").contains("mtu 1400"));
                assert!(tcp([198, 51, 100, 1], 7002).is_ok(), "{mode}");
                serve("a", 80);
            });
            let other = Netns::new();
            host.runtime.block_on(async {
                cni.create_sandbox(SandboxSpec { id: "b".into(), netns: other.path() }).await.unwrap();
                let second = cni.join("b", "lan", EndpointOptions::default()).await;
                if mode == "passthru" {
                    assert_eq!(second.unwrap_err().kind(), Kind::FailedPrecondition);
                } else {
                    second.unwrap();
                    other.within(|| assert!(tcp(a_ends[0].addresses[0].ip(), 80).is_err(), "{mode}"));
                }
                cni.delete_sandbox("a").await.unwrap();
                cni.delete_sandbox("b").await.unwrap();
                cni.delete_network("lan").await.unwrap();
            });
        }
        host.finish(cni);
    });
}

/// Whether the kernel can make links of a kind.
pub(crate) fn kernel_has(kind: &str) -> bool {
    let probe = format!("ip link add link lo name probe0 type {kind} id 9");
    let probe = if kind == "vlan" { probe } else { probe.replace(" id 9", "") };
    let output = std::process::Command::new("sh").args(["-c", &probe]).output().unwrap();
    let known = !String::from_utf8_lossy(&output.stderr).contains("Unknown device type");
    if output.status.success() {
        run("ip link del probe0");
    }
    known
}

#[test]
fn ipvlan_works_or_is_refused_clearly() {
    Host::test(|host| {
        lan(host);
        let cni = host.dual();
        if !kernel_has("ipvlan") {
            println!("this kernel has no ipvlan: only the refusal is tested");
            let request = request("lan", "ipvlan", &["198.51.100.0/24"], &[("parent", "lan0")]);
            let error = host.runtime.block_on(cni.create(request)).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains("ipvlan"), "{error}");
            assert!(cni.network("lan").is_none() && cni.networks().len() == 3);
            assert!(
                host.runtime.block_on(cni.pools()).unwrap().iter().all(|pool| pool.pool.network != "lan")
            );
            return host.finish(cni);
        }
        // Routed modes: the host is the next hop, both ways.
        run("ip addr add 198.51.100.2/24 dev lan0");
        host.outside.within(|| {
            serve("lan", 7002);
            run("ip route add 198.51.102.0/24 via 198.51.100.2");
        });
        for mode in ["l2", "l3", "l3s"] {
            let options = [("parent", "lan0"), ("mode", mode)];
            let subnets = if mode == "l2" {
                ["198.51.100.0/24", "2001:db8:1::/64"]
            } else {
                ["198.51.102.0/24", "2001:db8:2::/64"]
            };
            create(host, &cni, request("lan", "ipvlan", &subnets, &options));
            // .1 is the gateway's; .2 the host's own here.
            let (spare, _) = joined(host, &cni, "spare", &["lan"]);
            let (a, a_ends) = joined(host, &cni, "a", &["lan"]);
            let (b, b_ends) = joined(host, &cni, "b", &["lan"]);
            host.delete(&cni, "spare");
            drop(spare);
            a.within(|| serve("a", 80));
            b.within(|| {
                let own = b_ends[0].addresses[0].ip();
                assert!(run("ip -d link show eth0").contains(&format!("mode {mode}")));
                for address in &a_ends[0].addresses {
                    assert!(tcp(address.ip(), 80).unwrap().starts_with("a "), "{mode} {address}");
                }
                assert_eq!(tcp([198, 51, 100, 1], 7002).unwrap(), format!("lan {own}"), "{mode}: outside");
            });
            host.outside
                .within(|| assert!(tcp(a_ends[0].addresses[0].ip(), 80).is_ok(), "{mode}: from outside"));
            // /sys shows another namespace's interfaces.
            let parent = run("ip -o link show lan0");
            let parent = parent.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
            assert!(a.within(|| run("ip link show eth0")).contains(parent), "they have their parent's MAC");
            // Lost and found again.
            b.within(|| run("ip link del eth0"));
            let live = || ["a", "b"].map(str::to_owned).into();
            let report = host.runtime.block_on(cni.reconcile_with(live)).unwrap();
            assert_eq!(report.restored_endpoints, [("b".to_owned(), "lan".to_owned())], "{report:?}");
            b.within(|| assert!(tcp(a_ends[0].addresses[0].ip(), 80).is_ok(), "{mode}"));
            for id in ["a", "b"] {
                host.delete(&cni, id);
            }
            host.runtime.block_on(cni.delete_network("lan")).unwrap();
        }
        host.finish(cni);
    });
}

#[test]
fn a_vlan_interface_is_made_and_removed_or_refused_clearly() {
    Host::test(|host| {
        lan(host);
        let cni = host.dual();
        let request = request("tagged", "macvlan", &["198.51.101.0/24"], &[("parent", "lan0.100")]);
        if !kernel_has("vlan") {
            println!("this kernel has no 802.1q: only the refusal is tested");
            let error = host.runtime.block_on(cni.create(request)).unwrap_err();
            assert!(error.to_string().contains("802.1q"), "{error}");
            assert!(cni.network("tagged").is_none());
            return host.finish(cni);
        }
        host.outside.within(|| {
            run("ip link add link lan0 name lan0.100 type vlan id 100");
            run("ip addr add 198.51.101.1/24 dev lan0.100");
            run("ip link set lan0.100 up");
            serve("lan", 7002);
        });
        let drivers = if kernel_has("ipvlan") { &["macvlan", "ipvlan"][..] } else { &["macvlan"] };
        for driver in drivers {
            create(host, &cni, NetworkRequest { driver: (*driver).to_owned(), ..request.clone() });
            assert!(run("ip -d link show lan0.100").contains("vlan protocol 802.1Q id 100"));
            let (a, a_ends) = joined(host, &cni, "a", &["tagged"]);
            a.within(|| {
                let own = a_ends[0].addresses[0].ip();
                assert_eq!(tcp([198, 51, 101, 1], 7002).unwrap(), format!("lan {own}"), "{driver}");
            });
            // Deleted by somebody, it is made again with what stands on it.
            run("ip link del lan0.100");
            let report = host.runtime.block_on(cni.reconcile(&["a".to_owned()].into())).unwrap();
            assert!(report.errors.is_empty() && report.restored_endpoints.len() == 1, "{report:?}");
            a.within(|| assert!(tcp([198, 51, 101, 1], 7002).is_ok(), "{driver}: made again"));
            host.delete(&cni, "a");
            host.runtime.block_on(cni.delete_network("tagged")).unwrap();
            assert_eq!(links("lan0"), ["lan0"]);
        }
        host.finish(cni);
    });
}

#[test]
fn a_network_whose_parent_is_gone_waits_for_it() {
    Host::test(|host| {
        lan(host);
        let cni = host.dual();
        create(host, &cni, request("lan", "macvlan", &["198.51.100.0/24"], &[("parent", "lan0")]));
        drop(cni);
        run("ip link del lan0");
        eventually("the record file is free", || {
            Controller::open(host.options(&["10.85.0.0/16", "fd85:be:27::/64"])).is_ok()
        });
        let cni = host.dual();
        let netns = Netns::new();
        host.runtime.block_on(async {
            cni.create_sandbox(SandboxSpec { id: "a".into(), netns: netns.path() }).await.unwrap();
            let error = cni.join("a", "lan", EndpointOptions::default()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
        });
        lan(host);
        host.runtime.block_on(async {
            cni.join("a", "lan", EndpointOptions::default()).await.unwrap();
            cni.delete_sandbox("a").await.unwrap();
        });
        host.finish(cni);
    });
}

#[test]
fn requests_for_networks_that_make_no_sense_leave_nothing() {
    Host::test(|host| {
        let cni = host.dual();
        create(host, &cni, request("blue", "", &["10.90.0.0/24"], &[]));
        let gateway = |gateway: &str| {
            let mut request = request("red", "", &["10.91.0.0/24"], &[]);
            request.subnets[0].gateway = Some(gateway.parse().unwrap());
            request
        };
        let (before, tables) = (run("ip -o link"), run("nft list ruleset"));
        for (request, kind, words) in [
            (request("blue", "", &[], &[]), Kind::AlreadyExists, "network \"blue\" exists already"),
            (request("host", "", &[], &[]), Kind::AlreadyExists, "network \"host\" exists already"),
            (request("red", "", &["10.90.0.128/25"], &[]), Kind::FailedPrecondition, "overlaps 10.90.0.0/24"),
            (gateway("10.99.0.1"), Kind::InvalidArgument, "gateway"),
            (request("red", "", &["127.0.0.0/24"], &[]), Kind::InvalidArgument, "loopback"),
            (request("red", "", &["fe80::/64"], &[]), Kind::InvalidArgument, "link-local"),
            (
                request("red", "overlay", &["224.1.0.0/16"], &[]),
                Kind::FailedPrecondition,
                "network.etcd.endpoints",
            ),
            (request("red", "", &[], &[("mtu", "70000")]), Kind::InvalidArgument, "mtu"),
            (request("red", "", &[], &[("mtu", "many")]), Kind::InvalidArgument, "mtu"),
            (request("red", "weave", &[], &[]), Kind::InvalidArgument, "driver"),
            (request("red", "overlay", &[], &[]), Kind::FailedPrecondition, "network.etcd.endpoints"),
            (
                request("red", "", &["10.91.0.0/24", "10.92.0.0/24"], &[]),
                Kind::InvalidArgument,
                "one for each family",
            ),
            (request("../red", "", &[], &[]), Kind::InvalidArgument, "network"),
        ] {
            let error = host.runtime.block_on(cni.create(request)).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(before, run("ip -o link"));
        assert_eq!(tables, run("nft list ruleset"));
        let definitions: Vec<_> =
            std::fs::read_dir(host.directory.path().join("networks")).unwrap().collect();
        assert_eq!(definitions.len(), 1);
        let error = host.runtime.block_on(cni.delete_network("none")).unwrap_err();
        assert!(error.to_string().contains("built in"), "{error}");
        let pools = host.runtime.block_on(cni.pools()).unwrap();
        assert_eq!(pools.len(), 3, "{pools:?}");
        host.finish(cni);
    });
}
