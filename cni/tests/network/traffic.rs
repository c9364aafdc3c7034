//! Packets: between pods, out, and in over host ports.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use berth_cni::{EndpointOptions, PortMapping, Protocol};

use crate::host::{Host, port, publish, run, serve, tcp, udp, udp_on};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn pods_reach_each_other_the_gateway_and_the_outside_at_once() {
    Host::test(|host| {
        let cni = host.dual();
        let a = host.pod(&cni, EndpointOptions::default());
        let b = host.pod(&cni, EndpointOptions::default());
        assert_eq!(a.endpoint.addresses[0].to_string(), "10.85.0.2/16");
        assert_eq!(a.endpoint.addresses[1].to_string(), "fd85:be:27::2/64");
        assert_eq!(a.endpoint.mtu, 1450, "the MTU is that of the way out");
        b.serve(80);
        serve("host", 7000);
        host.outside.within(|| serve("outside", 7001));
        // No pause before the first packet: no address waits for duplicate address detection.
        a.netns.within(|| {
            assert_eq!(tcp(b.v6(), 80).unwrap(), format!("pod1 {}", a.v6()));
            assert_eq!(tcp(b.v4(), 80).unwrap(), format!("pod1 {}", a.v4()));
            assert_eq!(udp(b.v4(), 80).unwrap(), format!("pod1 {}", a.v4()));
            assert_eq!(tcp(ip("10.85.0.1"), 7000).unwrap(), format!("host {}", a.v4()));
            assert_eq!(tcp(ip("fd85:be:27::1"), 7000).unwrap(), format!("host {}", a.v6()));
            // Masqueraded: the outside knows no way back to the pod.
            assert_eq!(tcp(ip("192.0.2.2"), 7001).unwrap(), "outside 192.0.2.1");
            assert_eq!(tcp(ip("2001:db8::2"), 7001).unwrap(), "outside 2001:db8::1");
            let addresses = run("ip -6 -o addr show eth0");
            assert!(!addresses.contains("tentative"), "{addresses}");
            assert!(run("ip -o link show lo").contains("UP"));
        });
        for pod in [&a, &b] {
            host.delete(&cni, &pod.id);
        }
        host.finish(cni);
    });
}

#[test]
fn host_ports_work_from_outside_from_localhost_and_from_the_pod_itself() {
    Host::test(|host| {
        let cni = host.dual();
        let mappings = [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 8080, 80)];
        let web = host.pod(&cni, publish(mappings));
        let sibling = host.pod(&cni, EndpointOptions::default());
        web.serve(80);
        let to_host = |from: &str| {
            for address in ["192.0.2.1", "2001:db8::1"] {
                let tcp = tcp(ip(address), 8080);
                assert!(
                    tcp.as_ref().is_ok_and(|text| text.starts_with("pod0 ")),
                    "{from} {address}: {tcp:?}"
                );
                let udp = udp(ip(address), 8080);
                assert!(
                    udp.as_ref().is_ok_and(|text| text.starts_with("pod0 ")),
                    "{from} {address}: {udp:?}"
                );
            }
        };
        host.outside.within(|| {
            to_host("outside");
            assert_eq!(tcp(ip("192.0.2.1"), 8080).unwrap(), "pod0 192.0.2.2", "the client's address is kept");
        });
        to_host("host");
        assert_eq!(tcp(ip("127.0.0.1"), 8080).unwrap(), "pod0 10.85.0.1");
        assert_eq!(udp(ip("127.0.0.1"), 8080).unwrap(), "pod0 10.85.0.1");
        let refused = tcp(Ipv6Addr::LOCALHOST, 8080).unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "::1 is refused at once, never black-holed"
        );
        web.netns.within(|| to_host("the pod itself"));
        sibling.netns.within(|| to_host("a sibling"));
        host.delete(&cni, &web.id);
        assert!(host.outside.within(|| tcp(ip("192.0.2.1"), 8080)).is_err());
        host.delete(&cni, &sibling.id);
        host.finish(cni);
    });
}

#[test]
fn a_host_ip_limits_a_port_and_loopback_stays_closed_to_pods() {
    Host::test(|host| {
        let cni = host.dual();
        let on = |host_ip: &str, host_port| PortMapping {
            host_ip: Some(ip(host_ip)),
            ..port(Protocol::Tcp, host_port, 80)
        };
        let web = host.pod(&cni, publish([on("127.0.0.1", 8081), on("192.0.2.1", 8082), on("::", 8083)]));
        web.serve(80);
        assert!(tcp(ip("127.0.0.1"), 8081).unwrap().starts_with("pod0"));
        host.outside.within(|| {
            assert!(tcp(ip("192.0.2.1"), 8081).is_err(), "published on 127.0.0.1 only");
            assert!(tcp(ip("192.0.2.1"), 8082).unwrap().starts_with("pod0"));
            assert!(tcp(ip("192.0.2.1"), 8083).is_err(), "published on IPv6 only");
            assert!(tcp(ip("2001:db8::1"), 8083).unwrap().starts_with("pod0"));
        });
        assert!(tcp(ip("127.0.0.1"), 8082).is_err(), "published on 192.0.2.1 only");
        // What route_localnet opens, the guard chain closes: a pod that routes 127.0.0.0/8 to the bridge gets nowhere.
        let listener = std::net::TcpListener::bind("127.0.0.1:9999").unwrap();
        web.netns.within(|| {
            run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
            run("ip addr flush dev lo");
            run("ip route add 127.0.0.1 via 10.85.0.1 src 10.85.0.2");
            assert!(tcp(ip("127.0.0.1"), 9999).is_err());
        });
        drop(listener);
        host.delete(&cni, &web.id);
        host.finish(cni);
    });
}

#[test]
fn udp_clients_find_the_new_pod_behind_an_old_port() {
    Host::test(|host| {
        let cni = host.dual();
        let first = host.pod(&cni, publish([port(Protocol::Udp, 5353, 53)]));
        first.serve(53);
        host.outside.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:4444").unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            assert!(udp_on(&socket, ip("192.0.2.1"), 5353).unwrap().starts_with("pod0"));
        });
        host.delete(&cni, &first.id);
        let second = host.pod(&cni, publish([port(Protocol::Udp, 5353, 53)]));
        second.serve(53);
        host.outside.within(|| {
            // The same source port: without forgetting, the entry of the first pod would still be followed.
            let socket = UdpSocket::bind("0.0.0.0:4444").unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            assert!(udp_on(&socket, ip("192.0.2.1"), 5353).unwrap().starts_with("pod1"));
        });
        host.delete(&cni, &second.id);
        host.finish(cni);
    });
}

#[test]
fn stale_udp_connections_go_when_a_port_is_published_and_when_it_is_withdrawn() {
    Host::test(|host| {
        let cni = host.dual();
        // Translation is decided by a connection's first packet: there must be something that tracks it.
        let entries = || run("conntrack -L -p udp --orig-port-dst 5353").lines().count();
        let socket = host.outside.within(|| UdpSocket::bind("0.0.0.0:4444").unwrap());
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        // A client that began when nobody served.
        assert!(udp_on(&socket, ip("192.0.2.1"), 5353).is_err());
        assert_eq!(entries(), 1);
        let pod = host.pod(&cni, publish([port(Protocol::Udp, 5353, 53)]));
        assert_eq!(entries(), 0, "forgotten when the port is published");
        pod.serve(53);
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        // The refusal of the first packet may still be waiting.
        let answer =
            udp_on(&socket, ip("192.0.2.1"), 5353).or_else(|_| udp_on(&socket, ip("192.0.2.1"), 5353));
        assert!(answer.unwrap().starts_with("pod0"));
        assert_eq!(entries(), 1);
        host.delete(&cni, &pod.id);
        assert_eq!(entries(), 0, "and when it is withdrawn");
        host.finish(cni);
    });
}

/// As media servers publish them. What the connections cost must not grow with the ports: a look for each of them is a walk over
/// the kernel's whole table, and thousands are more than any deadline.
#[test]
fn thousands_of_udp_ports_are_published_and_withdrawn() {
    Host::test(|host| {
        let cni = host.dual();
        let range = || publish((20_000..24_096).map(|number| port(Protocol::Udp, number, number)));
        let socket = host.outside.within(|| UdpSocket::bind("0.0.0.0:4444").unwrap());
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        for expected in ["pod0", "pod1"] {
            let pod = host.pod(&cni, range());
            pod.serve(21_007);
            // From the same port again: without forgetting, the entry of the first pod would still be followed.
            assert!(udp_on(&socket, ip("192.0.2.1"), 21_007).unwrap().starts_with(expected));
            host.delete(&cni, &pod.id);
        }
        host.finish(cni);
    });
}

#[test]
fn a_pod_without_an_ipv6_address_has_no_ipv6() {
    Host::test(|host| {
        let cni = host.open(&["10.85.0.0/16"]);
        let pod = host.pod(&cni, EndpointOptions::default());
        pod.netns.within(|| {
            assert_eq!(run("ip -6 -o addr show dev eth0"), "");
            assert!(run("ip -6 -o addr show dev lo").contains("::1"));
        });
        host.delete(&cni, &pod.id);
        host.finish(cni);
    });
}

#[test]
fn publishing_a_port_leaves_connections_of_others_alone() {
    Host::test(|host| {
        let cni = host.dual();
        let client = host.pod(&cni, EndpointOptions::default());
        host.outside.within(|| serve("nameserver", 53));
        let socket = client.netns.within(|| UdpSocket::bind("0.0.0.0:4444").unwrap());
        socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let before = udp_on(&socket, ip("192.0.2.2"), 53).unwrap();
        assert_eq!(before, "nameserver 192.0.2.1");
        let entries = || run("conntrack -L -p udp --orig-port-dst 53").lines().count();
        assert_eq!(entries(), 1);
        let server = host.pod(&cni, publish([port(Protocol::Udp, 53, 53)]));
        assert_eq!(entries(), 1, "a pod's own queries go on");
        for pod in [&client, &server] {
            host.delete(&cni, &pod.id);
        }
        host.finish(cni);
    });
}
