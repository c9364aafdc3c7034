//! What hosts are set to: MTUs that come and go, IPv6 turned off or left out.

use berth_cni::{Controller, EndpointOptions};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::host::{Host, Pod, eventually, links, run, tcp};

/// The MTU in the pod and that of its bridge.
fn mtus(pod: &Pod) -> (u32, u32) {
    let of = |text: String| {
        let mtu = text.split(" mtu ").nth(1).unwrap().split(' ').next().unwrap();
        mtu.parse().unwrap()
    };
    (pod.netns.within(|| of(run("ip -o link show eth0"))), of(run("ip -o link show berth0")))
}

fn delete<const N: usize>(host: &Host, cni: &Controller, pods: [Pod; N]) {
    for pod in &pods {
        host.delete(cni, &pod.id);
    }
    drop(pods);
    eventually("the bridge has no port", || links("berth") == ["berth0"]);
}

#[test]
fn the_mtu_holds_when_the_last_pod_has_gone_and_follows_the_configuration() {
    Host::test(|host| {
        let cni = host.dual();
        let first = host.pod(&cni, EndpointOptions::default());
        assert_eq!(mtus(&first), (1450, 1450), "that of the way out");
        delete(host, &cni, [first]);
        let second = host.pod(&cni, EndpointOptions::default());
        assert_eq!((mtus(&second), second.endpoint.mtu), ((1450, 1450), 1450));
        drop(cni);
        let mut options = host.options(&["10.85.0.0/16", "fd85:be:27::/64"]);
        options.bridge.as_mut().unwrap().mtu = 1400;
        let reopened = std::cell::OnceCell::new();
        eventually("the record file is free", || {
            Controller::open(options.clone()).is_ok_and(|cni| reopened.set(cni).is_ok())
        });
        let cni = reopened.into_inner().unwrap();
        let third = host.pod(&cni, EndpointOptions::default());
        assert_eq!(mtus(&third), (1400, 1400), "what is configured now");
        assert_eq!(mtus(&second).0, 1450, "who is there keeps what it has");
        delete(host, &cni, [second, third]);
        let fourth = host.pod(&cni, EndpointOptions::default());
        assert_eq!(mtus(&fourth), (1400, 1400));
        host.finish(cni);
    });
}

#[test]
fn ipv6_works_on_a_host_that_has_turned_it_off_for_all_its_interfaces() {
    Host::test(|host| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let cni = host.dual();
        let pod = host.pod(&cni, EndpointOptions::default());
        pod.serve(80);
        assert!(tcp(pod.v6(), 80).unwrap().starts_with("pod0 fd85:be:27::1"));
        assert!(run("ip -o -6 addr show dev out0").is_empty(), "nobody else's interface is touched");
        host.finish(cni);
    });
}

#[test]
fn a_kernel_without_ipv6_has_the_default_network_with_ipv4_alone() {
    Host::test(|host| {
        // What `ipv6.disable=1` looks like from here, for this thread and those that it starts.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (nothing, none) = (None::<&str>, None::<&str>);
        mount(nothing, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/proc/sys/net/ipv6", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let cni = host.dual();
        let subnets: Vec<_> =
            cni.network("bridge").unwrap().subnets().iter().map(|subnet| subnet.subnet.to_string()).collect();
        assert_eq!(subnets, ["10.85.0.0/16"]);
        let pod = host.pod(&cni, EndpointOptions::default());
        assert_eq!(pod.endpoint.addresses.len(), 1);
        pod.serve(80);
        assert_eq!(tcp(pod.v4(), 80).unwrap(), "pod0 10.85.0.1");
        assert!(!cni.is_told(), "that is no change of subnets");
        host.finish(cni);
    });
}
