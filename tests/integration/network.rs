//! The pods' network: addresses, reachability in both families, published ports, what is freed.

use std::collections::HashSet;
use std::io::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use k8s_cri::v1::{PodSandboxConfig, Protocol};
use libtest_mimic::Trial;
use serde_json::json;

use crate::support::image::{Image, Layer, Packing};
use crate::support::netns::Netns;
use crate::support::spec::PodOptions;
use crate::support::{World, container, http};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        pods_reach_each_other,
        addresses_are_unique_and_freed,
        published_tcp_port,
        published_port_on_one_address,
        published_udp_port,
        published_port_over_ipv6,
        a_pod_reaches_itself_by_its_published_port,
        going_out_with_the_nodes_address,
        a_removed_pods_port_is_free,
        the_network_outlives_the_daemon,
    ]
}

/// A pod that serves `It works.` on port 80. Returns its id.
pub(crate) async fn web(world: &World, pod: &PodSandboxConfig) -> String {
    let image = world.image("web").await;
    let pod_id = world.run_pod(pod).await.unwrap();
    world.launch(&pod_id, pod, &container("web", &image, &[])).await.unwrap();
    pod_id
}

/// A neighbour of the node: a namespace joined by a link `uplink`; node 192.0.2.1, neighbour 192.0.2.2,
/// and the same with `2001:db8::`. The node's route out leads there.
fn neighbour(world: &World) -> Netns {
    let neighbour = Netns::new();
    world.netns.connect(&neighbour, "uplink");
    world.netns.ip("addr add 192.0.2.1/24 dev uplink");
    world.netns.ip("addr add 2001:db8::1/64 dev uplink nodad");
    neighbour.ip("addr add 192.0.2.2/24 dev uplink");
    neighbour.ip("addr add 2001:db8::2/64 dev uplink nodad");
    world.netns.ip("route add default via 192.0.2.2");
    world.netns.ip("-6 route add default via 2001:db8::2");
    neighbour
}

async fn pods_reach_each_other(world: &mut World) {
    let server = web(world, &world.pod("server")).await;
    let (client, id) = world.pod_with_sleeper("client").await;
    let network = world.pod_status(&server).await.unwrap().network.unwrap();
    assert_eq!(world.fetch(&format!("{}:80", network.ip)).text(), "It works.\n");
    assert_eq!(world.sh(&id, &format!("wget -q -O - http://{}/", network.ip)).await, "It works.");
    let v6 = &network.additional_ips[0].ip;
    assert_eq!(world.sh(&id, &format!("wget -q -O - 'http://[{v6}]/'")).await, "It works.");
    assert_eq!(world.sh(&id, "wget -q -O - http://127.0.0.1/ || echo own loopback").await, "own loopback");
    let own = world.address(&client).await;
    assert!(world.sh(&id, "ip -o addr show dev eth0").await.contains(&own));
}

async fn addresses_are_unique_and_freed(world: &mut World) {
    let mut seen = HashSet::new();
    let mut ids = Vec::new();
    for number in 0..5 {
        let id = world.run_pod(&world.pod(&format!("pod-{number}"))).await.unwrap();
        assert!(seen.insert(world.address(&id).await));
        ids.push(id);
    }
    let last = world.address(&ids[4]).await;
    world.remove_pod(&ids[4]).await.unwrap();
    let next = world.run_pod(&world.pod("next")).await.unwrap();
    let address = world.address(&next).await;
    assert_ne!(address, last, "addresses are reused as late as possible");
    assert!(seen.insert(address));
}

async fn published_tcp_port(world: &mut World) {
    let neighbour = neighbour(world);
    let mut pod = world.pod("web");
    pod.publish(Protocol::Tcp, 18080, 80);
    web(world, &pod).await;
    assert_eq!(world.fetch("192.0.2.1:18080").text(), "It works.\n", "the node by its address");
    assert_eq!(world.fetch("127.0.0.1:18080").text(), "It works.\n", "the node by loopback");
    let answer = neighbour.run(|| http::get("192.0.2.1:18080", "/")).unwrap();
    assert_eq!(answer.text(), "It works.\n", "from another machine");
    let (_, other) = world.pod_with_sleeper("other").await;
    let page = world.sh(&other, "wget -q -O - http://192.0.2.1:18080/").await;
    assert_eq!(page, "It works.", "another pod by the node's address");
}

async fn published_port_on_one_address(world: &mut World) {
    let _neighbour = neighbour(world);
    world.netns.ip("addr add 192.0.2.9/24 dev uplink");
    let mut pod = world.pod("web");
    pod.publish(Protocol::Tcp, 18081, 80);
    pod.port_mappings[0].host_ip = "192.0.2.9".into();
    web(world, &pod).await;
    assert_eq!(world.fetch("192.0.2.9:18081").text(), "It works.\n");
    world.netns.run(|| http::get("192.0.2.1:18081", "/")).unwrap_err();
    // The same port on another address is another pod's.
    let mut second = world.pod("second");
    second.publish(Protocol::Tcp, 18081, 80);
    second.port_mappings[0].host_ip = "192.0.2.1".into();
    web(world, &second).await;
    assert_eq!(world.fetch("192.0.2.1:18081").text(), "It works.\n");
}

/// Sends every packet on port 53 back to where it came from (busybox has no UDP server).
const UDP_ECHO: &str = r"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
int main(void) {
    char buffer[2048];
    struct sockaddr_in6 self = {.sin6_family = AF_INET6, .sin6_port = htons(53)}, peer;
    int socket_fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (bind(socket_fd, (struct sockaddr *)&self, sizeof self)) return 1;
    for (;;) {
        socklen_t length = sizeof peer;
        ssize_t size = recvfrom(socket_fd, buffer, sizeof buffer, 0, (struct sockaddr *)&peer, &length);
        if (size >= 0) sendto(socket_fd, buffer, size, 0, (struct sockaddr *)&peer, length);
    }
}
";

fn compile(world: &World, source: &str) -> Vec<u8> {
    let (input, output) = (world.disk.join("program.c"), world.disk.join("program"));
    std::fs::write(&input, source).unwrap();
    let status = std::process::Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&output, &input])
        .status()
        .expect("cc (apt-get install gcc libc6-dev)");
    assert!(status.success());
    std::fs::read(output).unwrap()
}

async fn published_udp_port(world: &mut World) {
    let neighbour = neighbour(world);
    let mut pod = world.pod("udp");
    pod.publish(Protocol::Udp, 18053, 53);
    let pod_id = world.run_pod(&pod).await.unwrap();
    let echo = Layer::new().file("bin/udp-echo", 0o755, &compile(world, UDP_ECHO));
    let image = Image::busybox(json!({"Cmd": ["/bin/udp-echo"]})).layer(echo, Packing::Gzip);
    let image = world.registry.push("test/udp", "1", &image);
    world.pull(&image).await.unwrap();
    let config = container("udp", &image, &[]);
    world.launch(&pod_id, &pod, &config).await.unwrap();
    for (name, netns) in [("node", &world.netns), ("neighbour", &neighbour)] {
        let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let deadline = crate::support::within(10);
        let mut buffer = [0; 64];
        loop {
            socket.send_to(b"ping\n", "192.0.2.1:18053").unwrap();
            if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                assert_eq!(&buffer[..length], b"ping\n");
                break;
            }
            assert!(Instant::now() < deadline, "no answer to the {name}");
        }
    }
}

async fn published_port_over_ipv6(world: &mut World) {
    let neighbour = neighbour(world);
    let mut pod = world.pod("web6");
    pod.publish(Protocol::Tcp, 18082, 80);
    web(world, &pod).await;
    world.fetch("192.0.2.1:18082");
    let answer = neighbour.run(|| http::get("[2001:db8::1]:18082", "/")).unwrap();
    assert_eq!(answer.text(), "It works.\n");
}

async fn a_pod_reaches_itself_by_its_published_port(world: &mut World) {
    let _neighbour = neighbour(world);
    let mut pod = world.pod("hairpin");
    pod.publish(Protocol::Tcp, 18083, 80);
    let pod_id = web(world, &pod).await;
    let id = world.sleeper(&pod_id, &pod).await;
    world.fetch("192.0.2.1:18083");
    assert_eq!(world.sh(&id, "timeout 5 wget -q -O - http://192.0.2.1:18083/").await, "It works.");
}

async fn going_out_with_the_nodes_address(world: &mut World) {
    let neighbour = neighbour(world);
    let (_, id) = world.pod_with_sleeper("out").await;
    for (listen, url) in [("192.0.2.2:8000", "192.0.2.2:8000"), ("[2001:db8::2]:8000", "[2001:db8::2]:8000")]
    {
        let listener = neighbour.run(|| std::net::TcpListener::bind(listen)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{}", peer.ip());
            stream.write_all(answer.as_bytes()).unwrap();
            // Read what was asked, so that the close is not a reset.
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
        });
        let seen = world.sh(&id, &format!("timeout 5 wget -q -O - 'http://{url}/'")).await;
        assert!(seen == "192.0.2.1" || seen == "2001:db8::1", "{seen}");
        server.join().unwrap();
    }
}

async fn a_removed_pods_port_is_free(world: &mut World) {
    for _ in 0..2 {
        let mut pod = world.pod("again");
        pod.publish(Protocol::Tcp, 18084, 80);
        let pod_id = web(world, &pod).await;
        assert_eq!(world.fetch("127.0.0.1:18084").text(), "It works.\n");
        world.stop_pod(&pod_id).await.unwrap();
        world.netns.run(|| http::get("127.0.0.1:18084", "/")).unwrap_err();
        world.remove_pod(&pod_id).await.unwrap();
    }
}

async fn the_network_outlives_the_daemon(world: &mut World) {
    let mut pod = world.pod("web");
    pod.publish(Protocol::Tcp, 18085, 80);
    web(world, &pod).await;
    assert_eq!(world.fetch("127.0.0.1:18085").text(), "It works.\n");
    world.daemon.kill();
    assert_eq!(world.fetch("127.0.0.1:18085").text(), "It works.\n", "without a daemon");
    world.daemon.spawn();
    world.ready().await;
    assert_eq!(world.fetch("127.0.0.1:18085").text(), "It works.\n", "after recovery");
    let other = world.run_pod(&world.pod("other")).await.unwrap();
    assert!(!world.address(&other).await.is_empty());
}
