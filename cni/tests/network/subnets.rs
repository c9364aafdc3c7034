//! A network's subnets change while sandboxes are on it.

use std::collections::HashSet;

use berth_cni::{Controller, EndpointOptions, Kind, NetworkRequest, Protocol};
use ipnetwork::IpNetwork;

use crate::host::{Host, eventually, port, publish, run, serve, tcp};

fn told(texts: &[&str]) -> Option<Vec<IpNetwork>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn change(host: &Host, cni: &Controller, texts: &[&str]) -> berth_cni::Result<bool> {
    host.runtime.block_on(cni.change_subnets("bridge", told(texts)))
}

fn live(ids: &[&str]) -> HashSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn gateways() -> Vec<String> {
    let mut found: Vec<_> = run("ip -o addr show dev berth0 scope global")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
        .collect();
    found.sort();
    found
}

/// The subnets that are translated, as `nft` shows them.
fn translated() -> String {
    run("nft list set inet berth subnets4")
        .split("elements = ")
        .nth(1)
        .unwrap_or_default()
        .trim_end_matches(['}', '\n', '\t', ' '])
        .to_owned()
}

#[test]
fn those_that_are_there_keep_their_addresses() {
    Host::test(|host| {
        let cni = host.dual();
        let old = host.pod(&cni, publish([port(Protocol::Tcp, 8080, 80)]));
        old.serve(80);
        assert!(change(host, &cni, &["10.244.1.0/24", "fd44:1::/64"]).unwrap());
        assert!(cni.is_told());
        assert!(!change(host, &cni, &["10.244.1.0/24", "fd44:1::/64"]).unwrap(), "the same again");
        assert_eq!(gateways(), ["10.244.1.1/24", "10.85.0.1/16", "fd44:1::1/64", "fd85:be:27::1/64"]);
        let new = host.pod(&cni, EndpointOptions::default());
        assert_eq!((new.v4().to_string(), new.v6().to_string()), ("10.244.1.2".into(), "fd44:1::2".into()));
        new.serve(80);
        // Each other, the host, and the host's port: both live on.
        assert_eq!(new.netns.within(|| tcp(old.v4(), 80)).unwrap(), "pod0 10.244.1.2");
        assert_eq!(old.netns.within(|| tcp(new.v6(), 80)).unwrap(), format!("pod1 {}", old.v6()));
        assert_eq!(tcp([127, 0, 0, 1], 8080).unwrap(), "pod0 10.85.0.1");
        host.outside.within(|| serve("outside", 9000));
        for pod in [&old, &new] {
            let seen = pod.netns.within(|| tcp([192, 0, 2, 2], 9000)).unwrap();
            assert_eq!(seen, "outside 192.0.2.1", "translated");
        }
        assert!(
            translated().contains("10.85.0.0/16") && translated().contains("10.244.1.0/24"),
            "{}",
            translated()
        );
        let report = host.runtime.block_on(cni.reconcile(&live(&[&old.id, &new.id]))).unwrap();
        assert!(report.is_clean(), "{report:?}");
        // With its last address the old pool goes.
        host.delete(&cni, &old.id);
        let report = host.runtime.block_on(cni.reconcile(&live(&[&new.id]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(gateways(), ["10.244.1.1/24", "fd44:1::1/64"]);
        assert!(!translated().contains("10.85.0.0/16"), "{}", translated());
        let pools = host.runtime.block_on(cni.pools()).unwrap();
        assert_eq!(pools.len(), 2, "{pools:?}");
        new.serve(81);
        assert!(tcp(new.v4(), 81).is_ok() && tcp(new.v6(), 81).is_ok());
        host.finish(cni);
    });
}

/// A part of the old subnet, and back: addresses move between the pools, none is given out twice.
#[test]
fn a_part_of_the_subnet_and_back() {
    Host::test(|host| {
        let cni = host.dual();
        let wanted = |address: &str| EndpointOptions {
            addresses: vec![address.parse().unwrap()],
            ..EndpointOptions::default()
        };
        let inside = host.pod(&cni, EndpointOptions::default());
        let beyond = host.pod(&cni, wanted("10.85.7.7"));
        assert!(change(host, &cni, &["10.85.0.0/24", "fd85:be:27::/64"]).unwrap());
        assert_eq!(gateways(), ["10.85.0.1/16", "10.85.0.1/24", "fd85:be:27::1/64"]);
        assert!(translated().contains("10.85.0.0/16") && !translated().contains("/24"), "{}", translated());
        let next = host.pod(&cni, EndpointOptions::default());
        assert_eq!(next.v4().to_string(), "10.85.0.3", "10.85.0.2 moved along with its holder");
        for pod in [&inside, &beyond, &next] {
            pod.serve(80);
            assert!(tcp(pod.v4(), 80).is_ok(), "{}", pod.v4());
        }
        assert!(next.netns.within(|| tcp(beyond.v4(), 80)).is_ok());
        assert!(beyond.netns.within(|| tcp(next.v4(), 80)).is_ok());
        host.delete(&cni, &beyond.id);
        let report = host.runtime.block_on(cni.reconcile(&live(&[&inside.id, &next.id]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(gateways(), ["10.85.0.1/24", "fd85:be:27::1/64"]);
        assert!(translated().contains("10.85.0.0/24"), "{}", translated());
        assert!(tcp(inside.v4(), 80).is_ok() && tcp(next.v4(), 80).is_ok());
        // The larger one takes all leases over at once.
        assert!(change(host, &cni, &["10.85.0.0/16"]).unwrap());
        assert_eq!(gateways(), ["10.85.0.1/16", "fd85:be:27::1/64"], "IPv6 addresses are in use");
        assert!(translated().contains("10.85.0.0/16"), "{}", translated());
        let last = host.pod(&cni, EndpointOptions::default());
        assert_eq!(last.endpoint.addresses.len(), 1, "no IPv6 any more");
        assert_eq!(last.v4().to_string(), "10.85.0.4");
        for pod in [&inside, &next, &last] {
            host.delete(&cni, &pod.id);
        }
        // As configured.
        assert!(host.runtime.block_on(cni.change_subnets("bridge", None)).unwrap());
        assert!(!cni.is_told());
        assert_eq!(gateways(), ["10.85.0.1/16", "fd85:be:27::1/64"]);
        host.finish(cni);
    });
}

#[test]
fn the_next_life_knows_it_unless_configured_otherwise() {
    Host::test(|host| {
        let reopen = |cni: Controller, subnets: &[&str]| {
            drop(cni);
            let reopened = std::cell::OnceCell::new();
            eventually("the record file is free", || {
                Controller::open(host.options(subnets)).is_ok_and(|cni| reopened.set(cni).is_ok())
            });
            reopened.into_inner().unwrap()
        };
        let cni = host.open(&["10.85.0.0/16"]);
        let old = host.pod(&cni, EndpointOptions::default());
        assert!(change(host, &cni, &["10.244.1.0/24"]).unwrap());
        let cni = reopen(cni, &["10.85.0.0/16"]);
        let report = host.runtime.block_on(cni.reconcile(&live(&[&old.id]))).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(host.pod(&cni, EndpointOptions::default()).v4().to_string(), "10.244.1.2");
        old.serve(80);
        assert!(tcp(old.v4(), 80).is_ok());
        // Another configuration is the later word.
        let cni = reopen(cni, &["10.86.0.0/16"]);
        assert!(!cni.is_told());
        assert_eq!(host.pod(&cni, EndpointOptions::default()).v4().to_string(), "10.86.0.2");
        assert_eq!(gateways(), ["10.244.1.1/24", "10.85.0.1/16", "10.86.0.1/16"]);
        let report = host.runtime.block_on(cni.reconcile(&live(&[]))).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(gateways(), ["10.86.0.1/16"]);
        host.finish(cni);
    });
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    Host::test(|host| {
        let cni = host.dual();
        let blue = NetworkRequest {
            name: "blue".into(),
            subnets: vec![berth_cni::model::SubnetOptions::new("10.70.0.0/24".parse().unwrap())],
            ..NetworkRequest::default()
        };
        host.runtime.block_on(cni.create(blue)).unwrap();
        let gateway = EndpointOptions {
            addresses: ["10.85.3.1", "fd85:be:27::5:1"].map(|text| text.parse().unwrap()).to_vec(),
            ..EndpointOptions::default()
        };
        let pod = host.pod(&cni, gateway);
        let before = (gateways(), translated(), host.runtime.block_on(cni.pools()).unwrap());
        for (subnets, kind, words) in [
            (&["10.70.0.0/16"][..], Kind::FailedPrecondition, "overlaps 10.70.0.0/24 of network \"blue\""),
            (&["10.85.3.0/24"], Kind::FailedPrecondition, "10.85.3.1 is that of sandbox \"pod0\""),
            (&["fd85:be:27::/112"], Kind::FailedPrecondition, "fd85:be:27::1"),
            (&["::/0"], Kind::InvalidArgument, "prefix length"),
            (&["10.1.0.0/31"], Kind::InvalidArgument, "prefix length"),
            (&["10.1.0.7/24"], Kind::InvalidArgument, "10.1.0.0/24 is meant"),
            (&["127.0.0.0/16"], Kind::InvalidArgument, "loopback"),
            (&["10.1.0.0/24", "10.2.0.0/24"], Kind::InvalidArgument, "one for each family"),
            (&[], Kind::InvalidArgument, "at least one"),
        ] {
            let error = change(host, &cni, subnets).unwrap_err();
            assert_eq!(error.kind(), kind, "{subnets:?}: {error}");
            assert!(error.to_string().contains(words), "{subnets:?}: {error}");
        }
        for network in ["host", "none"] {
            let refused = host.runtime.block_on(cni.change_subnets(network, told(&["10.1.0.0/24"])));
            assert_eq!(refused.unwrap_err().kind(), Kind::InvalidArgument);
        }
        assert!(!cni.is_told());
        assert_eq!((gateways(), translated(), host.runtime.block_on(cni.pools()).unwrap()), before);
        host.delete(&cni, &pod.id);
        host.finish(cni);
    });
}
