//! Joining and leaving: addresses, refusals, concurrency, networks.

use std::{collections::HashSet, net::TcpListener};

use berth_cni::{
    BridgeOptions, EndpointOptions, Kind, Network, NetworkRequest, PortMapping, Protocol, SandboxSpec,
    model::{NetworkDriver, SubnetOptions},
};

use crate::host::{Host, Netns, eventually, links, port, publish, run};

#[test]
fn joining_and_deleting_twice_is_the_same_as_once() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        host.runtime.block_on(async {
            let spec = SandboxSpec { id: pod.id.clone(), netns: pod.netns.path() };
            cni.create_sandbox(spec.clone()).await.unwrap();
            let again = cni.join(&pod.id, "bridge", publish([port(Protocol::Tcp, 8080, 80)])).await.unwrap();
            assert_eq!(again, pod.endpoint);
            let error = cni.join(&pod.id, "bridge", EndpointOptions::default()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::AlreadyExists);
            let error =
                cni.create_sandbox(SandboxSpec { netns: "/elsewhere".into(), ..spec }).await.unwrap_err();
            assert_eq!(error.kind(), Kind::AlreadyExists);
            cni.leave(&pod.id, "bridge").await.unwrap();
            cni.leave(&pod.id, "bridge").await.unwrap();
            assert_eq!(pod.netns.within(|| links("eth0")).len(), 0, "leave waits for the interface");
            cni.join(&pod.id, "none", EndpointOptions::default()).await.unwrap();
            cni.join(&pod.id, "host", EndpointOptions::default()).await.unwrap();
            assert_eq!(cni.sandbox(&pod.id).unwrap().unwrap().endpoints.len(), 2);
            cni.delete_sandbox(&pod.id).await.unwrap();
            cni.delete_sandbox(&pod.id).await.unwrap();
            assert_eq!(cni.sandbox(&pod.id).unwrap(), None);
        });
        host.finish(cni);
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_and_leave_nothing() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, EndpointOptions::default());
        let other = Netns::new();
        host.runtime.block_on(async {
            cni.create_sandbox(SandboxSpec { id: "other".into(), netns: other.path() }).await.unwrap();
            let refused = async |sandbox: &str, network: &str, options: EndpointOptions| {
                let error = cni.join(sandbox, network, options).await.unwrap_err();
                (error.kind(), error.to_string())
            };
            let with = |address: &str| EndpointOptions {
                addresses: vec![address.parse().unwrap()],
                ..EndpointOptions::default()
            };
            assert_eq!(refused("nobody", "bridge", EndpointOptions::default()).await.0, Kind::NotFound);
            assert_eq!(refused("other", "nowhere", EndpointOptions::default()).await.0, Kind::NotFound);
            assert_eq!(refused("other", "bridge", with("10.9.0.1")).await.0, Kind::InvalidArgument);
            let (kind, text) = refused("other", "bridge", with(&pod.v4().to_string())).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert_eq!(text, "address 10.85.0.2 is leased to sandbox \"pod0\"");
            for interface in ["", "sixteen-letters-", "a/b", "lo"] {
                let options = EndpointOptions { interface: interface.into(), ..EndpointOptions::default() };
                assert_eq!(refused("other", "bridge", options).await.0, Kind::InvalidArgument);
            }
            // Packets to these never come to a pod.
            let on = |address: &str| PortMapping {
                host_ip: Some(address.parse().unwrap()),
                ..port(Protocol::Tcp, 8080, 80)
            };
            for (address, words) in [
                ("::1", "publish it on 127.0.0.1"),
                ("::ffff:127.0.0.1", "as an IPv4 address"),
                ("224.0.0.1", "multicast"),
                ("ff02::1", "multicast"),
                ("255.255.255.255", "broadcast"),
            ] {
                let (kind, text) = refused("other", "bridge", publish([on(address)])).await;
                assert_eq!(kind, Kind::InvalidArgument, "{text}");
                assert!(text.contains(address) && text.contains(words), "{text}");
            }
            let single = NetworkRequest {
                name: "single".into(),
                subnets: vec![SubnetOptions::new("10.70.0.0/24".parse().unwrap())],
                ..NetworkRequest::default()
            };
            cni.create(single).await.unwrap();
            let (kind, text) = refused("other", "single", publish([on("2001:db8::1")])).await;
            assert_eq!(kind, Kind::InvalidArgument, "{text}");
            assert!(text.contains("has no IPv6 addresses"), "{text}");
            cni.delete_network("single").await.unwrap();
            other.within(|| run("ip link add eth0 type bridge"));
            let (kind, text) = refused("other", "bridge", EndpointOptions::default()).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert!(text.starts_with("interface \"eth0\" exists already in "), "{text}");
            cni.create_sandbox(SandboxSpec { id: "gone".into(), netns: "/run/no/such/netns".into() })
                .await
                .unwrap();
            let (kind, text) = refused("gone", "bridge", EndpointOptions::default()).await;
            assert_eq!(kind, Kind::FailedPrecondition);
            assert!(text.contains("/run/no/such/netns"), "{text}");
            assert_eq!(cni.sandbox("other").unwrap().unwrap().endpoints, []);
        });
        assert_eq!(links("berth").len(), 2, "the bridge and the one good endpoint");
        host.finish(cni);
    });
}

#[test]
fn a_host_port_has_one_holder_and_the_error_names_it() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        let listener = TcpListener::bind("0.0.0.0:8090").unwrap();
        let other = Netns::new();
        let join = |options| {
            host.runtime.block_on(async {
                cni.create_sandbox(SandboxSpec { id: "other".into(), netns: other.path() }).await.unwrap();
                cni.join("other", "bridge", options).await
            })
        };
        let error = join(publish([port(Protocol::Tcp, 8080, 81)])).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(error.to_string(), "host port 0.0.0.0:8080/tcp is taken by sandbox \"pod0\"");
        let mut one = port(Protocol::Tcp, 8080, 81);
        one.host_ip = Some("192.0.2.1".parse().unwrap());
        assert_eq!(join(publish([one])).unwrap_err().kind(), Kind::FailedPrecondition);
        let error = join(publish([port(Protocol::Tcp, 8090, 81)])).unwrap_err();
        let expected = format!("({}) on the host", std::process::id());
        assert!(error.to_string().ends_with(&expected), "{error}");
        drop(listener);
        let free = || join(publish([port(Protocol::Tcp, 8090, 81), port(Protocol::Udp, 8080, 81)]));
        // A process that another test is just starting has the socket for a moment still.
        let mut joined = free();
        for _ in 0..150 {
            if joined.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            joined = free();
        }
        let endpoint = joined.unwrap();
        assert_eq!(endpoint.addresses[0].ip().to_string(), "10.85.0.3", "refused joins lease nothing");
        for id in [&pod.id, "other"] {
            host.delete(&cni, id);
        }
        host.finish(cni);
    });
}

#[test]
fn a_full_pool_says_so_and_addresses_come_back_as_late_as_possible() {
    Host::test(|host| {
        let cni = host.open(&["10.85.0.0/29"]);
        let mut pods: Vec<_> = (0..5).map(|_| host.pod(&cni, EndpointOptions::default())).collect();
        let spare = Netns::new();
        let error = host.runtime.block_on(async {
            cni.create_sandbox(SandboxSpec { id: "spare".into(), netns: spare.path() }).await.unwrap();
            cni.join("spare", "bridge", EndpointOptions::default()).await.unwrap_err()
        });
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        for at in [3, 0] {
            host.delete(&cni, &pods.remove(at).id);
        }
        let next: Vec<_> =
            (0..2).map(|_| host.pod(&cni, EndpointOptions::default()).v4().to_string()).collect();
        assert_eq!(next, ["10.85.0.5", "10.85.0.2"], "the one released first comes first");
        host.finish(cni);
    });
}

#[test]
fn two_hundred_join_at_once_without_duplicates() {
    Host::test(|host| {
        let cni = host.dual();
        let namespaces: Vec<_> = (0..200).map(|_| Netns::new()).collect();
        let endpoints = host.runtime.block_on(async {
            let mut joins = tokio::task::JoinSet::new();
            for (number, netns) in namespaces.iter().enumerate() {
                let (cni, path) = (cni.clone(), netns.path());
                joins.spawn(async move {
                    let id = format!("many{number}");
                    cni.create_sandbox(SandboxSpec { id: id.clone(), netns: path }).await.unwrap();
                    let port = port(Protocol::Tcp, 10_000 + u16::try_from(number).unwrap(), 80);
                    cni.join(&id, "bridge", publish([port])).await.unwrap()
                });
            }
            joins.join_all().await
        });
        let addresses: HashSet<_> = endpoints.iter().flat_map(|e| e.addresses.clone()).collect();
        assert_eq!(addresses.len(), 400);
        assert_eq!(links("berth").len(), 201);
        host.runtime.block_on(async {
            for number in 0..200 {
                cni.delete_sandbox(&format!("many{number}")).await.unwrap();
            }
        });
        drop(namespaces);
        eventually("the kernel takes the interfaces with their namespaces", || links("berth").len() == 1);
        assert!(!run("nft list map inet berth ports4").contains("elements"));
        host.finish(cni);
    });
}

#[test]
fn an_interface_whose_namespace_is_held_goes_all_the_same() {
    Host::test(|host| {
        let cni = host.dual();
        let pod = host.pod(&cni, EndpointOptions::default());
        host.delete(&cni, &pod.id);
        // The runtime has to go on meanwhile: it is what deletes.
        host.runtime.block_on(async {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while links("berth") != ["berth0"] {
                assert!(std::time::Instant::now() < deadline, "the interface stays with its namespace");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        host.finish(cni);
    });
}

#[test]
fn networks_are_kept_refused_when_wrong_and_removed_when_unused() {
    Host::test(|host| {
        let bridge = |bridge: &str, subnet: &str| {
            NetworkDriver::Bridge(BridgeOptions {
                mtu: 1400,
                subnets: vec![SubnetOptions::new(subnet.parse().unwrap())],
                ..BridgeOptions::new(bridge, [])
            })
        };
        let blue = Network::new("blue", bridge("berth1", "10.86.0.0/24"));
        let cni = host.dual();
        host.runtime.block_on(async {
            cni.create_network(blue.clone()).await.unwrap();
            cni.create_network(blue.clone()).await.unwrap();
            let refused = async |name: &str, driver| {
                cni.create_network(Network::new(name, driver)).await.unwrap_err().kind()
            };
            assert_eq!(refused("blue", bridge("berth2", "10.87.0.0/24")).await, Kind::AlreadyExists);
            assert_eq!(refused("red", bridge("berth2", "10.85.9.0/24")).await, Kind::FailedPrecondition);
            assert_eq!(refused("red", bridge("berth1", "10.87.0.0/24")).await, Kind::InvalidArgument);
            assert_eq!(refused("../red", bridge("berth2", "10.87.0.0/24")).await, Kind::InvalidArgument);
            assert_eq!(refused("red", bridge("out0", "10.87.0.0/24")).await, Kind::InvalidArgument);
        });
        assert!(links("out0").len() == 1, "an interface of others survives a failed creation");
        drop(cni);
        eventually("the workers let go of the record file", || {
            berth_cni::Controller::open(host.options(&["10.85.0.0/16", "fd85:be:27::/64"])).is_ok()
        });
        let cni = host.dual();
        assert_eq!(cni.networks().len(), 4);
        let netns = Netns::new();
        host.runtime.block_on(async {
            cni.create_sandbox(SandboxSpec { id: "pod".into(), netns: netns.path() }).await.unwrap();
            let second = EndpointOptions {
                interface: "eth1".into(),
                default_route: false,
                ..EndpointOptions::default()
            };
            cni.join("pod", "bridge", EndpointOptions::default()).await.unwrap();
            let endpoint = cni.join("pod", "blue", second).await.unwrap();
            assert_eq!(endpoint.mtu, 1400);
            let error = cni.delete_network("blue").await.unwrap_err();
            assert_eq!(error.to_string(), "network \"blue\" is in use by 1 endpoints, \"pod\" among them");
            cni.leave("pod", "blue").await.unwrap();
            cni.delete_network("blue").await.unwrap();
            cni.delete_network("blue").await.unwrap();
            assert_eq!(cni.delete_network("bridge").await.unwrap_err().kind(), Kind::FailedPrecondition);
        });
        assert_eq!(links("berth1").len(), 0);
        host.finish(cni);
    });
}
