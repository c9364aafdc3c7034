//! Bandwidth limits: the queues that the kernel shows, and what passes them.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Instant,
};

use berth_cni::{Bandwidth, EndpointOptions, Kind, NetworkRequest, SandboxSpec};

use crate::host::{Host, Netns, links, run};

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

#[test]
fn what_can_not_be_limited_is_refused() {
    Host::test(|host| {
        let cni = host.dual();
        let request = NetworkRequest {
            name: "lan".into(),
            driver: "macvlan".into(),
            subnets: vec![berth_cni::model::SubnetOptions::new("192.0.2.0/24".parse().unwrap())],
            options: [("parent".to_owned(), "out0".to_owned())].into(),
            ..NetworkRequest::default()
        };
        let netns = Netns::new();
        host.runtime.block_on(async {
            cni.create(request).await.unwrap();
            cni.create_sandbox(SandboxSpec { id: "pod".into(), netns: netns.path() }).await.unwrap();
            let error = cni.join("pod", "lan", limited(Some(1_000_000), None)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("use a bridge network"), "{error}");
        });
        assert!(netns.within(|| links("eth0")).is_empty());
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
        let transfer = |upwards: bool| {
            let address = pod.v4();
            let listener = pod.netns.within(|| TcpListener::bind("0.0.0.0:9000")).unwrap();
            let at_pod = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                if upwards {
                    stream.write_all(&vec![7; BYTES]).unwrap();
                } else {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    assert_eq!(all.len(), BYTES);
                }
            });
            let begin = Instant::now();
            let mut stream = TcpStream::connect((address, 9000)).unwrap();
            if upwards {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                assert_eq!(all.len(), BYTES);
            } else {
                stream.write_all(&vec![7; BYTES]).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            at_pod.join().unwrap();
            begin.elapsed()
        };
        for upwards in [false, true] {
            let took = transfer(upwards);
            assert!(took.as_secs_f64() > 1.0, "upwards: {upwards}, {took:?}");
        }
        host.delete(&cni, &pod.id);
        drop(pod);
        host.finish(cni);
    });
}
