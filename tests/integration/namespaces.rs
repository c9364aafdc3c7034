//! What the containers of a pod share with each other and with the host, and the files made for a pod.

use k8s_cri::v1::{DnsConfig, NamespaceMode};
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::container;
use crate::support::spec::{ContainerOptions, PodOptions, script};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        own_processes,
        one_pid_namespace_for_the_pod,
        pid_namespace_of_the_node,
        pid_namespace_of_a_target,
        shared_memory,
        network_of_the_node,
        files_of_the_pod,
    ]
}

/// Sets a namespace mode in a pod's or a container's options.
macro_rules! mode {
    ($config:expr, $field:ident, $mode:ident) => {
        $config.security().namespace_options.as_mut().unwrap().$field = NamespaceMode::$mode.into()
    };
}

async fn own_processes(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("own").await;
    assert_eq!(world.sh(&id, "tr '\\0' ' ' < /proc/1/cmdline").await, "sleep 100000");
}

async fn one_pid_namespace_for_the_pod(world: &mut World) {
    let mut pod = world.pod("shared");
    mode!(pod, pid, Pod);
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut first = container("first", &image, &["sleep", "11111"]);
    mode!(first, pid, Pod);
    let mut second = container("second", &image, &["sleep", "22222"]);
    mode!(second, pid, Pod);
    let a = world.launch(&pod_id, &pod, &first).await.unwrap();
    let b = world.launch(&pod_id, &pod, &second).await.unwrap();
    for id in [&a, &b] {
        let processes = world.sh(id, "ps -o args").await;
        assert!(processes.contains("sleep 11111") && processes.contains("sleep 22222"), "{processes}");
        assert!(!world.sh(id, "tr '\\0' ' ' < /proc/1/cmdline").await.starts_with("sleep"));
    }
    // Orphans are reaped by the namespace's first process.
    world.sh(&a, "sh -c 'true & exec true'; sleep 0.3").await;
    assert!(!world.sh(&a, "ps -o stat").await.contains('Z'));
    world.stop_container(&a, 0).await.unwrap();
    assert_eq!(world.sh(&b, "ps -o args | grep -c '[s]leep 11111' || true").await, "0");
    world.restart().await;
    assert_eq!(world.sh(&b, "echo alive").await, "alive");
}

async fn pid_namespace_of_the_node(world: &mut World) {
    let mut pod = world.pod("node");
    mode!(pod, pid, Node);
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "33333"]);
    mode!(config, pid, Node);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let daemon = world.daemon.pid();
    assert_eq!(world.sh(&id, &format!("test -d /proc/{daemon} && echo seen")).await, "seen");
}

async fn pid_namespace_of_a_target(world: &mut World) {
    let pod = world.pod("target");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let target = world.launch(&pod_id, &pod, &container("app", &image, &["sleep", "44444"])).await.unwrap();
    let mut debugger = container("debugger", &image, &["sleep", "55555"]);
    mode!(debugger, pid, Target);
    debugger.security().namespace_options.as_mut().unwrap().target_id = target;
    let id = world.launch(&pod_id, &pod, &debugger).await.unwrap();
    assert_eq!(world.sh(&id, "tr '\\0' ' ' < /proc/1/cmdline").await, "sleep 44444");
}

async fn shared_memory(world: &mut World) {
    let pod = world.pod("shm");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let a = world.launch(&pod_id, &pod, &container("a", &image, &["sleep", "1000"])).await.unwrap();
    let b = world.launch(&pod_id, &pod, &container("b", &image, &["sleep", "1000"])).await.unwrap();
    world.sh(&a, "echo shared > /dev/shm/file").await;
    assert_eq!(world.sh(&b, "cat /dev/shm/file").await, "shared");
    assert_eq!(world.sh(&b, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2").await, "65536");
    let namespace = "readlink /proc/self/ns/ipc";
    assert_eq!(world.sh(&a, namespace).await, world.sh(&b, namespace).await);
    let uts = "readlink /proc/self/ns/uts";
    assert_eq!(world.sh(&a, uts).await, world.sh(&b, uts).await);

    let mut pod = world.pod("host-ipc");
    mode!(pod, ipc, Node);
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("c", &image, &["sleep", "1000"]);
    mode!(config, ipc, Node);
    let c = world.launch(&pod_id, &pod, &config).await.unwrap();
    let host = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    assert_eq!(world.sh(&c, namespace).await, host.to_str().unwrap());
}

async fn network_of_the_node(world: &mut World) {
    let mut pod = world.pod("host-network");
    mode!(pod, network, Node);
    pod.hostname = String::new();
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config =
        script("main", &image, "mkdir /w; echo from the node > /w/index.html; httpd -f -p 8081 -h /w");
    mode!(config, network, Node);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.fetch("127.0.0.1:8081").text(), "from the node\n");
    let links = world.sh(&id, "ls /sys/class/net /proc/sys/net/ipv4/conf").await;
    assert!(links.contains("lo"), "{links}");
    let links = world.sh(&id, "ip -o link | wc -l").await;
    assert_eq!(links, world.netns.ip("-o link").lines().count().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(world.sh(&id, "hostname").await, host.trim());
}

async fn files_of_the_pod(world: &mut World) {
    let mut pod = world.pod("files");
    pod.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.sleeper(&pod_id, &pod).await;
    let resolv_conf = world.sh(&id, "cat /etc/resolv.conf").await;
    let lines: Vec<&str> = resolv_conf.lines().collect();
    for line in
        ["nameserver 192.0.2.1", "nameserver 192.0.2.2", "search a.example b.example", "options ndots:5"]
    {
        assert!(lines.contains(&line), "{line} in {resolv_conf}");
    }
    assert_eq!(world.sh(&id, "hostname; cat /etc/hostname").await, "files\nfiles");
    let hosts = world.sh(&id, "cat /etc/hosts").await;
    assert!(hosts.contains("localhost"), "{hosts}");
    if world.is_berth() {
        let address = world.address(&pod_id).await;
        let own = hosts.lines().find(|line| line.starts_with(&address)).unwrap_or_default();
        assert!(own.contains("files"), "{hosts}");
    }
}
