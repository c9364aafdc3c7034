//! What hosts are set to: MTUs that come and go.

use berth_cni::{Controller, EndpointOptions};

use crate::host::{Host, Pod, eventually, links, run};

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
