//! `berth-overlay`, the CNI plugin: network namespaces of another runtime on an overlay of the host's daemon.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Underlay, eventually, trial};
use crate::overlay_pods::{Pod, addresses_of, ask, everywhere, reaches};
use crate::support::World;
use crate::support::netns::Netns;
use crate::support::runtime::binaries;

pub(crate) fn trials() -> Vec<Trial> {
    const NAME: &str = "overlay::a_plugin_joins_namespaces_of_other_runtimes";
    if !binaries().join("berth-cni").exists() {
        return vec![Trial::test(NAME, || {
            println!("skipped: there is no berth-cni beside berthd");
            Ok(())
        })];
    }
    vec![trial(NAME, 2, Underlay::V4, a_plugin_joins_namespaces_of_other_runtimes)]
}

// === What a container runtime does ===

/// A container of another runtime: a namespace that is pinned by a bind mount.
struct Container {
    id: &'static str,
    netns: Netns,
    pin: PathBuf,
}

impl Container {
    fn new(world: &World, id: &'static str) -> Self {
        let (netns, pin) = (Netns::new(), world.run.join(format!("netns-{id}")));
        std::fs::File::create(&pin).unwrap();
        netns
            .run(|| {
                mount(Some("/proc/thread-self/ns/net"), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            })
            .unwrap();
        Self { id, netns, pin }
    }

    fn unpin(&self) {
        umount2(&self.pin, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_file(&self.pin).unwrap();
    }
}

/// Runs the plugin on a host: whether it succeeded, and what it printed.
fn plugin(world: &World, command: &str, container: Option<&Container>, config: &Value) -> (bool, Value) {
    let program = world.run.join("berth-overlay");
    if !program.exists() {
        std::os::unix::fs::symlink(binaries().join("berth-cni"), &program).unwrap();
    }
    let (id, pin) =
        container.map_or(("", Path::new("")), |container| (container.id, container.pin.as_path()));
    // The plugin does its work by the daemon: where it runs is of no matter.
    let mut child = Command::new(program)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", pin)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=guest-{id}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let printed = if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (output.status.success(), printed)
}

fn ok(world: &World, command: &str, container: Option<&Container>, config: &Value) -> Value {
    let (succeeded, printed) = plugin(world, command, container, config);
    assert!(succeeded, "{command}: {printed}");
    printed
}

fn failed(world: &World, command: &str, container: Option<&Container>, config: &Value) -> (u64, String) {
    let (succeeded, printed) = plugin(world, command, container, config);
    assert!(!succeeded, "{command}: {printed}");
    (printed["code"].as_u64().unwrap(), format!("{} {}", printed["msg"], printed["details"]))
}

fn config(world: &World, more: &Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "guests", "type": "berth-overlay",
                            "socket": world.daemon.socket, "network": "blue"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// A container's place on the network as a pod, for what pods are asked.
fn as_pod(container: &Container, result: &Value) -> Pod {
    let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap();
    Pod {
        id: container.id.to_owned(),
        netns: container.netns.clone(),
        addresses: vec![address.parse().unwrap()],
    }
}

fn endpoints(world: &World) -> Vec<String> {
    let network = world.inspect_network("blue");
    let all = network["endpoints"].as_array().cloned().unwrap_or_default();
    all.iter().map(|endpoint| endpoint["podId"].as_str().unwrap_or_default().to_owned()).collect()
}

// === Tests ===

async fn a_plugin_joins_namespaces_of_other_runtimes(cluster: &mut Cluster) {
    let subnet = json!({"ipam": {"subnet": "10.97.0.0/24"}, "vni": 5100});
    let [one, two] = [0, 1].map(|host| Container::new(&cluster.hosts[host], ["one", "two"][host]));
    let (here, there) = (&cluster.hosts[0], &cluster.hosts[1]);
    // The network is not there, and nothing says how to make it.
    let bare = config(here, &json!({}));
    let (code, text) = failed(here, "ADD", Some(&one), &bare);
    assert!(code == 100 && text.contains("blue") && text.contains("network create"), "{code} {text}");
    assert_eq!(failed(here, "STATUS", None, &bare).0, 50);
    // Both hosts make it, at the same time.
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| ok(there, "ADD", Some(&two), &config(there, &subnet)));
        (ok(here, "ADD", Some(&one), &config(here, &subnet)), other.join().unwrap())
    });
    everywhere(cluster, "blue");
    ok(here, "STATUS", None, &bare);
    assert_eq!(here.inspect_network("blue")["options"]["vni"], "5100");
    assert_eq!(first["interfaces"][1]["name"], "eth0", "{first}");
    assert_eq!(first["interfaces"][1]["sandbox"], json!(one.pin));
    assert_eq!(first["ips"][0]["gateway"], "10.97.0.1", "{first}");
    let (guest, other) = (as_pod(&one, &first), as_pod(&two, &second));
    guest.serve(80, "one");
    other.serve(80, "two");
    reaches(&guest.netns, &other, 80, "two");
    reaches(&other.netns, &guest, 80, "one");
    // A pod of the daemon's own, on the other host: by address and by name.
    let pod = there.overlay_pod("pod", &json!({"name": "blue"})).await;
    pod.serve(80, "pod");
    reaches(&pod.netns, &guest, 80, "one");
    reaches(&guest.netns, &pod, 80, "pod");
    eventually("a guest is found by its pod's name", || {
        let found = addresses_of(&pod.netns, "guest-one")?;
        if found == guest.addresses { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // Again is the same; what was made is as it was made.
    assert_eq!(ok(here, "ADD", Some(&one), &bare), first);
    let with_result = config(here, &json!({"prevResult": first}));
    ok(here, "CHECK", Some(&one), &with_result);
    let (code, text) = failed(here, "CHECK", Some(&one), &config(here, &json!({"prevResult": second})));
    assert!(code == 102 && text.contains("another attachment's"), "{code} {text}");

    what_makes_no_sense_is_refused(here, &one, &guest);

    // The daemon's death is no guest's.
    cluster.hosts[0].daemon.kill();
    reaches(&pod.netns, &guest, 80, "one");
    let (code, text) = failed(&cluster.hosts[0], "DEL", Some(&one), &bare);
    assert!(code == 11 && text.contains("berthd"), "{code} {text}");
    cluster.hosts[0].daemon.spawn();
    cluster.hosts[0].ready().await;
    let (here, there) = (&cluster.hosts[0], &cluster.hosts[1]);
    reaches(&pod.netns, &guest, 80, "one");
    ok(here, "CHECK", Some(&one), &with_result);
    here.berth_ok(&["network", "ipam", "gc"]);
    assert_eq!(endpoints(here), ["cni-one.eth0"]);

    // What its runtime forgot is collected, but only by its own configuration.
    let valid = |name: &str, ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        config(here, &json!({"name": name, "cni.dev/valid-attachments": ids}))
    };
    ok(here, "GC", None, &valid("others", &[]));
    ok(here, "GC", None, &valid("guests", &["one"]));
    assert_eq!(endpoints(here), ["cni-one.eth0"]);
    ok(here, "GC", None, &valid("guests", &[]));
    assert!(endpoints(here).is_empty());
    assert!(!one.netns.ip("-o link").contains("eth0"), "the interface is gone when it returns");
    assert_eq!(failed(here, "CHECK", Some(&one), &with_result).0, 102);
    eventually("nobody is told of it any more", || {
        let found = addresses_of(&pod.netns, "guest-one")?;
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });

    // Removed by its runtime, twice; and one whose namespace went without a word.
    ok(here, "ADD", Some(&one), &bare);
    ok(here, "DEL", Some(&one), &bare);
    ok(here, "DEL", Some(&one), &bare);
    assert!(endpoints(here).is_empty());
    two.unpin();
    there.berth_ok(&["network", "ipam", "gc"]);
    assert_eq!(endpoints(there), std::slice::from_ref(&pod.id));
    one.unpin();
}

fn what_makes_no_sense_is_refused(world: &World, container: &Container, guest: &Pod) {
    let spare = Container::new(world, "spare");
    let taken = guest.addresses[0];
    for (more, code, words) in [
        (json!({"network": "bridge"}), 100, "is of driver bridge"),
        (json!({"runtimeConfig": {"ips": [format!("{taken}/24")]}}), 100, "10.97.0."),
        (json!({"runtimeConfig": {"ips": ["10.1.1.1/24"]}}), 7, "in no subnet"),
        (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), 7, "unicast"),
        (json!({"ipam": {"type": "dhcp"}}), 7, "dhcp"),
        (json!({"network": "green", "ipam": {"subnet": "10.97.0.128/25"}}), 100, "overlaps"),
        (json!({"socket": "/run/no/such/socket"}), 11, "/run/no/such/socket"),
    ] {
        let (found, text) = failed(world, "ADD", Some(&spare), &config(world, &more));
        assert!(found == code && text.contains(words), "{more}: {found} {text}");
    }
    // The same attachment with something else.
    let other = json!({"runtimeConfig": {"mac": "02:00:00:00:00:09"}});
    let (code, _) = failed(world, "ADD", Some(container), &config(world, &other));
    assert_eq!(code, 100);
    assert_eq!(endpoints(world), ["cni-one.eth0"]);
    spare.unpin();
    let (code, text) = failed(world, "ADD", Some(&spare), &config(world, &json!({})));
    assert!(code == 100 && text.contains("no network namespace is there"), "{code} {text}");
    let answer = ask(&guest.netns, SocketAddr::new(IpAddr::from([10, 97, 0, 1]), 80), 1);
    assert!(answer.is_err(), "the gateway serves nothing: {answer:?}");
}
