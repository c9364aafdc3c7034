//! Pods attached by CNI plugins: Debian's own, and scripts that misbehave.

use std::path::PathBuf;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tonic::Code;

use crate::network::web;
use crate::support::http;
use crate::support::runtime::{Options, Runtime, binaries};
use crate::support::spec::PodOptions;
use crate::support::world::assert_code;
use crate::support::{World, within};
use crate::trials;

const DEBIAN: &str = "/usr/lib/cni";

pub(crate) fn trials() -> Vec<Trial> {
    let options = Options {
        network: format!(
            "mode = \"auto\"\ncni_conf_dir = \"RUN/net.d\"\ncni_bin_dirs = [\"RUN/plugins\", \"{DEBIAN}\"]\ncni_timeout = \"2s\""
        ),
        ..Options::default()
    };
    trials![options = options.clone();
        debians_plugins_attach_pods,
        a_pods_network_outlives_the_daemon_and_its_configuration,
        the_configuration_comes_goes_and_comes_back,
        what_plugins_are_told,
        plugins_that_fail_leave_nothing,
        killed_while_a_plugin_works,
        plugins_say_how_they_are_and_collect_garbage,
        multus_reads_its_annotation_itself,
        built_in_networks_beside_plugins,
        the_nodes_cidr_is_theirs,
        our_plugin_in_a_chain_with_debians_portmap,
        our_plugin_for_debians_containerd,
    ]
}

impl World {
    fn configurations(&self) -> PathBuf {
        self.run.join("net.d")
    }

    /// Writes a configuration, as an add-on does: a temporary file, renamed.
    fn configure(&self, name: &str, list: &Value) {
        std::fs::create_dir_all(self.configurations()).unwrap();
        let temporary = self.configurations().join(".new");
        std::fs::write(&temporary, list.to_string()).unwrap();
        std::fs::rename(temporary, self.configurations().join(name)).unwrap();
    }

    /// Debian's bridge, host-local and portmap, and what else a test wants.
    fn debian(&self, more: &[Value]) {
        let mut plugins = vec![
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                   "ipam": {"type": "host-local", "dataDir": self.leases(),
                            "ranges": [[{"subnet": "10.80.0.0/24"}], [{"subnet": "fd80::/64"}]],
                            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        ];
        plugins.extend(more.iter().cloned());
        self.configure(
            "10-pods.conflist",
            &json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}),
        );
    }

    fn leases(&self) -> PathBuf {
        self.run.join("leases")
    }

    /// Addresses that host-local has given out.
    fn leased(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.leases().join("pods")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut leased: Vec<_> =
            names.filter(|name| name.contains(['.', ':']) && !name.starts_with("last")).collect();
        leased.sort();
        leased
    }

    /// A plugin that is a script.
    fn plugin(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.run.join("plugins");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        std::fs::write(&path, format!("#!/bin/sh\nRUN={}\n{script}\n", self.run.display())).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn attachments(&self) -> usize {
        std::fs::read_dir(self.daemon.root.join("records/cni")).unwrap().count()
    }

    /// `None` when the network is ready, else the reason.
    async fn network_condition(&self) -> Option<String> {
        let status = self.runtime().status(k8s_cri::v1::StatusRequest::default()).await.unwrap().into_inner();
        let conditions = status.status.unwrap().conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
        (!network.status).then_some(network.message)
    }

    /// Waits until the network is not ready for a reason, or ready where there is none.
    async fn wait_network(&self, reason: Option<&str>) {
        let deadline = within(15);
        loop {
            let found = self.network_condition().await;
            let fits = match (reason, &found) {
                (None, None) => true,
                (Some(words), Some(found)) => found.contains(words),
                _ => false,
            };
            if fits {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "not {reason:?}: {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn told(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.run.join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

async fn debians_plugins_attach_pods(world: &mut World) {
    world.debian(&[]);
    let mut pod = world.pod("server");
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18200, 80);
    let server = web(world, &pod).await;
    let network = world.pod_status(&server).await.unwrap().network.unwrap();
    assert!(network.ip.starts_with("10.80.0."), "{network:?}");
    assert!(network.additional_ips[0].ip.starts_with("fd80::"), "{network:?}");
    let (client, id) = world.pod_with_sleeper("client").await;
    assert_eq!(world.sh(&id, &format!("wget -q -O - http://{}/", network.ip)).await, "It works.");
    assert!(world.sh(&id, "ip -o link show lo").await.contains("UP"), "loopback");
    assert_eq!(world.fetch(&format!("{}:80", network.ip)).text(), "It works.\n");
    world.netns.command("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
    assert_eq!(world.fetch("127.0.0.1:18200").text(), "It works.\n", "portmap");
    assert_eq!((world.leased().len(), world.attachments()), (4, 2));
    world.stop_pod(&server).await.unwrap();
    world.stop_pod(&server).await.unwrap();
    assert_eq!((world.leased().len(), world.attachments()), (2, 1), "a stopped pod has no address");
    world.remove_pod(&server).await.unwrap();
    world.remove_pod(&client).await.unwrap();
    assert_eq!((world.leased().len(), world.attachments()), (0, 0));
}

async fn a_pods_network_outlives_the_daemon_and_its_configuration(world: &mut World) {
    world.debian(&[]);
    let server = web(world, &world.pod("server")).await;
    let address = world.address(&server).await;
    world.fetch(&format!("{address}:80"));
    world.crash_and_restart().await;
    assert_eq!(world.address(&server).await, address);
    assert_eq!(world.fetch(&format!("{address}:80")).text(), "It works.\n");
    // What deletes is what added, whatever the directory says by now.
    std::fs::remove_dir_all(world.configurations()).unwrap();
    world.crash_and_restart().await;
    world.remove_pod(&server).await.unwrap();
    assert_eq!((world.leased().len(), world.attachments()), (0, 0));
}

async fn the_configuration_comes_goes_and_comes_back(world: &mut World) {
    let place = async |name: &str| {
        let id = world.run_pod(&world.pod(name)).await.unwrap();
        let address = world.address(&id).await;
        world.remove_pod(&id).await.unwrap();
        address.split('.').take(2).collect::<Vec<_>>().join(".")
    };
    assert_eq!(place("built-in").await, "10.85", "auto, and there is no directory");
    world.debian(&[]);
    assert_eq!(place("appeared").await, "10.80");
    std::fs::remove_dir_all(world.configurations()).unwrap();
    assert_eq!(place("gone").await, "10.85");
    world.debian(&[]);
    assert_eq!(place("recreated").await, "10.80");
    // An earlier file wins; its name is that of the network.
    let ptp = json!({"cniVersion": "0.4.0", "name": "single", "type": "ptp",
                     "ipam": {"type": "host-local", "dataDir": world.leases(), "subnet": "10.81.0.0/24"}});
    world.configure("05-first.conf", &ptp);
    assert_eq!(place("earlier").await, "10.81");
    for entry in std::fs::read_dir(world.configurations()).unwrap().flatten() {
        std::fs::write(entry.path(), "{ not json").unwrap();
    }
    world.wait_network(Some("05-first.conf")).await;
    let message = assert_code(world.run_pod(&world.pod("broken")).await, Code::FailedPrecondition);
    assert!(message.contains("not a JSON object"), "{message}");
    world.debian(&[]);
    world.wait_network(None).await;
    std::fs::remove_dir_all(world.configurations()).unwrap();
    let config = std::fs::read_to_string(&world.daemon.config).unwrap();
    std::fs::write(&world.daemon.config, config.replace("mode = \"auto\"", "mode = \"cni\"")).unwrap();
    assert!(world.daemon.terminate());
    world.daemon.spawn();
    let deadline = within(20);
    while world.runtime().version(k8s_cri::v1::VersionRequest::default()).await.is_err() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.wait_network(Some("no CNI configuration in")).await;
    world.debian(&[]);
    world.wait_network(None).await;
    let id = world.run_pod(&world.pod("late")).await.unwrap();
    assert!(world.address(&id).await.starts_with("10.80."));
}

async fn the_nodes_cidr_is_theirs(world: &mut World) {
    // While there is no configuration the built-in network has it.
    world.tell_cidr("10.80.0.0/24").await.unwrap();
    let early = world.run_pod(&world.pod("early")).await.unwrap();
    assert_eq!(world.address(&early).await, "10.80.0.2");
    world.remove_pod(&early).await.unwrap();
    // With the first pod that plugins attach it is theirs: two bridges with one subnet would stand in each other's way.
    world.debian(&[]);
    let server = web(world, &world.pod("server")).await;
    let address = world.address(&server).await;
    assert!(address.starts_with("10.80.0."), "{address}");
    assert_eq!(world.subnets().await, ["10.85.0.0/16", "fd85:be:27::/64"]);
    assert!(!world.netns.command("ip", &["addr", "show", "dev", "berth0"]).contains("10.80.0."));
    assert_eq!(world.fetch(&format!("{address}:80")).text(), "It works.\n");
    // Told again, nothing is rendered and nothing changes.
    let files = std::fs::read_dir(world.configurations()).unwrap().count();
    world.tell_cidr("10.80.0.0/24").await.unwrap();
    assert_eq!(world.subnets().await, ["10.85.0.0/16", "fd85:be:27::/64"]);
    assert_eq!(std::fs::read_dir(world.configurations()).unwrap().count(), files);
}

/// Writes what it is told, a line a run, and passes on the address it got.
const LISTENER: &str = r#"
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS $CNI_PATH netns=$CNI_NETNS $input" >> $RUN/told
case $CNI_COMMAND in
ADD)
    address=$(printf '%s' "$input" | grep -o '10[.]80[.]0[.][0-9]*/24' | head -n 1)
    printf '{"cniVersion": "1.0.0", "ips": [{"address": "%s"}]}' "$address" ;;
esac
"#;

async fn what_plugins_are_told(world: &mut World) {
    world.plugin("listener", LISTENER);
    const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
    let capabilities = json!({"bandwidth": true, "dns": true, "mac": true, "ips": true, "portMappings": true,
                              "cgroupPath": true, ANNOTATIONS: true});
    world.debian(&[json!({"type": "listener", "capabilities": capabilities, "own": "kept"})]);
    let mut pod = world.pod("told");
    pod.publish(k8s_cri::v1::Protocol::Udp, 18201, 53);
    pod.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
    pod.dns_config =
        Some(k8s_cri::v1::DnsConfig { servers: vec!["192.0.2.53".into()], ..Default::default() });
    let list = json!([{"name": "pods", "mac": "02:00:00:00:00:09"}]);
    pod.annotations.insert("berth.dev/networks".into(), list.to_string());
    let id = world.run_pod(&pod).await.unwrap();
    let address = world.address(&id).await;
    world.remove_pod(&id).await.unwrap();
    let told = world.told();
    assert_eq!(told.len(), 2, "{told:?}");
    let uid = &pod.metadata.as_ref().unwrap().uid;
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=told;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    );
    let path = format!("{}:{DEBIAN}", world.run.join("plugins").display());
    for (line, command) in told.iter().zip(["ADD", "DEL"]) {
        let expected = format!("{command} {id} eth0 {arguments} {path} netns=/");
        assert!(line.starts_with(&expected), "{line}\n{expected}");
        let input: Value = serde_json::from_str(&line[line.find(" {").unwrap()..]).unwrap();
        assert_eq!((&input["name"], &input["cniVersion"]), (&json!("pods"), &json!("1.0.0")));
        assert_eq!(input["own"], "kept");
        let runtime = &input["runtimeConfig"];
        assert_eq!(runtime["portMappings"][0]["hostPort"], 18201);
        assert_eq!(runtime["bandwidth"]["ingressRate"], 10_000_000);
        assert_eq!(runtime["dns"]["servers"], json!(["192.0.2.53"]));
        assert_eq!(runtime["mac"], "02:00:00:00:00:09");
        assert_eq!(runtime[ANNOTATIONS]["kubernetes.io/ingress-bandwidth"], "10M");
        assert_eq!(runtime["cgroupPath"], pod.linux.as_ref().unwrap().cgroup_parent);
        let previous = input["prevResult"]["ips"].to_string();
        assert!(previous.contains(&address), "{command}: {previous}");
    }
}

async fn plugins_that_fail_leave_nothing(world: &mut World) {
    world.plugin("hangs", "case $CNI_COMMAND in ADD) sleep 1000 & sleep 1000;; esac");
    world.plugin("babbles", "case $CNI_COMMAND in ADD) echo hello world;; esac");
    world.plugin(
        "refuses",
        r#"case $CNI_COMMAND in ADD) echo '{"cniVersion":"1.0.0","code":7,"msg":"no such parent","details":"eth9"}'; exit 1;; esac"#,
    );
    world.plugin("dies", "case $CNI_COMMAND in ADD) echo 'panic: nil map' >&2; exit 2;; esac");
    world.plugin("floods", "case $CNI_COMMAND in ADD) yes '{' | head -c 3000000;; esac");
    for (plugin, code, words) in [
        ("hangs", Code::DeadlineExceeded, "no answer in 2s"),
        ("babbles", Code::Internal, "hello world"),
        ("refuses", Code::Internal, "no such parent (code 7): eth9"),
        ("dies", Code::Internal, "panic: nil map"),
        ("floods", Code::Internal, "floods"),
        ("missing", Code::FailedPrecondition, "is in none of"),
    ] {
        world.debian(&[json!({"type": plugin})]);
        let deadline = within(20);
        let message = assert_code(world.run_pod(&world.pod(plugin)).await, code);
        assert!(message.contains(words) && message.contains(plugin), "{message}");
        assert!(message.lines().count() == 1 && message.len() < 1000, "{message}");
        assert!(std::time::Instant::now() < deadline, "{plugin}");
        assert_eq!(world.leased(), Vec::<String>::new(), "{plugin}");
        // Without its program a plugin can't be asked to delete: that is tried again, and told.
        if plugin != "missing" {
            assert_eq!(world.attachments(), 0, "{plugin}");
        }
    }
    world.plugin("missing", "exit 0");
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    world.crash_and_restart().await;
    assert_eq!(world.attachments(), 0);
    let left = std::process::Command::new("pgrep").args(["-f", "sleep 1000$"]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

async fn killed_while_a_plugin_works(world: &mut World) {
    world.plugin("slow", "echo $CNI_COMMAND >> $RUN/told; case $CNI_COMMAND in ADD) sleep 1;; esac");
    world.debian(&[json!({"type": "slow"})]);
    let mut client = world.runtime();
    let pod = world.pod("cut-off");
    let request = k8s_cri::v1::RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
    let call = tokio::spawn(async move { client.run_pod_sandbox(request).await });
    let deadline = within(10);
    while world.told().is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((world.attachments(), world.leased().len()), (1, 2), "on record before it is made");
    world.daemon.kill();
    let _ = call.await;
    world.daemon.spawn();
    world.ready().await;
    assert!(world.list_pods().await.unwrap().is_empty());
    assert_eq!((world.attachments(), world.leased()), (0, Vec::new()));
    assert!(world.told().contains(&"DEL".to_owned()));
}

async fn plugins_say_how_they_are_and_collect_garbage(world: &mut World) {
    world.plugin(
        "modern",
        r#"input=$(cat); echo "$CNI_COMMAND $input" >> $RUN/told
        case $CNI_COMMAND in
        STATUS) [ -e $RUN/sick ] && { echo '{"code": 50, "msg": "no agent on this node"}'; exit 1; } ;;
        ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.82.0.5/24"}]}' ;;
        esac
        exit 0"#,
    );
    world.configure(
        "10-modern.conflist",
        &json!({"cniVersion": "1.1.0", "name": "modern", "plugins": [{"type": "modern"}]}),
    );
    let id = world.run_pod(&world.pod("kept")).await.unwrap();
    assert_eq!(world.address(&id).await, "10.82.0.5");
    std::fs::write(world.run.join("sick"), "").unwrap();
    world.wait_network(Some("no agent on this node")).await;
    std::fs::remove_file(world.run.join("sick")).unwrap();
    world.wait_network(None).await;
    world.crash_and_restart().await;
    let told = world.told();
    let collected = told.iter().rfind(|line| line.starts_with("GC ")).expect("asked at start");
    let valid = json!([{"containerID": id, "ifname": "eth0"}]);
    let input: Value = serde_json::from_str(&collected[3..]).unwrap();
    assert_eq!(input["cni.dev/valid-attachments"], valid);
    assert_eq!(input["cni.dev/attachments"], valid, "as it was called for a while");
}

/// Its "thick" installation has a client of its daemon for a plugin. What the annotation names are resources of the cluster: no
/// networks of this node.
async fn multus_reads_its_annotation_itself(world: &mut World) {
    world.plugin(
        "multus-shim",
        r#"cat > /dev/null; [ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.82.0.5/24"}]}'"#,
    );
    world.configure(
        "00-multus.conf",
        &json!({"cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus-shim"}),
    );
    let mut pod = world.pod("many-legged");
    pod.annotations.insert("k8s.v1.cni.cncf.io/networks".into(), "storage/macvlan-conf@net1".into());
    let id = world.run_pod(&pod).await.unwrap();
    assert_eq!(world.address(&id).await, "10.82.0.5");
    world.remove_pod(&id).await.unwrap();
    assert_eq!(world.attachments(), 0);
}

async fn built_in_networks_beside_plugins(world: &mut World) {
    world.debian(&[]);
    let ptp = json!({"cniVersion": "0.4.0", "name": "second", "type": "ptp",
                     "ipam": {"type": "host-local", "dataDir": world.leases(), "subnet": "10.81.0.0/24"}});
    world.configure("20-second.conf", &ptp);
    world.berth_ok(&["network", "create", "--subnet", "10.70.0.0/24", "blue"]);
    let mut pod = world.pod("several");
    pod.annotations.insert("berth.dev/networks".into(), "pods,blue,second@back".into());
    let id = web(world, &pod).await;
    let container = world.sleeper(&id, &pod).await;
    assert!(world.address(&id).await.starts_with("10.80."));
    let addresses = world.sh(&container, "ip -o -4 addr").await;
    for (interface, start) in [("eth0", "10.80."), ("eth1", "10.70."), ("back", "10.81.")] {
        let line = addresses.lines().find(|line| line.contains(&format!(" {interface} "))).unwrap();
        assert!(line.contains(start), "{addresses}");
    }
    let own = world.inspect_network("blue")["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned();
    let own = own.split('/').next().unwrap();
    assert_eq!(world.netns.run(|| http::get(format!("{own}:80"), "/")).unwrap().text(), "It works.\n");
    world.berth_ok(&["network", "disconnect", "blue", "several"]);
    assert!(world.address(&id).await.starts_with("10.80."), "its address is the plugins'");
    // The first name that is free: `eth0` is a plugin's.
    world.berth_ok(&["network", "connect", "blue", "several"]);
    assert_eq!(world.inspect_network("blue")["endpoints"][0]["interface"], "eth1");
    world.remove_pod(&id).await.unwrap();
    assert_eq!((world.leased().len(), world.attachments()), (0, 0));
    world.prune();
}

/// Debian's plugins and ours in one directory; returns it.
fn all_plugins(run: &std::path::Path) -> PathBuf {
    let directory = run.join("all-plugins");
    std::fs::create_dir_all(&directory).unwrap();
    for entry in std::fs::read_dir(DEBIAN).unwrap().flatten() {
        std::os::unix::fs::symlink(entry.path(), directory.join(entry.file_name())).unwrap();
    }
    std::os::unix::fs::symlink(binaries().join("berth-cni"), directory.join("berth-bridge")).unwrap();
    directory
}

fn our_list(version: &str, records: &std::path::Path) -> Value {
    json!({"cniVersion": version, "name": "ours", "plugins": [
        {"type": "berth-bridge", "bridge": "cni0", "dataDir": records,
         "ipam": {"ranges": [[{"subnet": "10.83.0.0/24"}], [{"subnet": "fd83::/64"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

async fn our_plugin_in_a_chain_with_debians_portmap(world: &mut World) {
    let directory = all_plugins(&world.run);
    std::os::unix::fs::symlink(directory.join("berth-bridge"), {
        std::fs::create_dir_all(world.run.join("plugins")).unwrap();
        world.run.join("plugins/berth-bridge")
    })
    .unwrap();
    let records = world.run.join("plugin-records");
    world.configure("10-ours.conflist", &our_list("1.0.0", &records));
    let mut pod = world.pod("server");
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18210, 80);
    let server = web(world, &pod).await;
    let network = world.pod_status(&server).await.unwrap().network.unwrap();
    assert!(network.ip.starts_with("10.83.0.") && network.additional_ips[0].ip.starts_with("fd83::"));
    let (_, id) = world.pod_with_sleeper("client").await;
    assert_eq!(world.sh(&id, &format!("wget -q -O - http://{}/", network.ip)).await, "It works.");
    world.netns.command("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
    assert_eq!(world.fetch("127.0.0.1:18210").text(), "It works.\n", "portmap");
    for pod in world.list_pods().await.unwrap() {
        world.remove_pod(&pod.id).await.unwrap();
    }
    assert_eq!(world.attachments(), 0);
    assert_eq!(world.netns.ip("-o link show master cni0"), "");
}

async fn our_plugin_for_debians_containerd(world: &mut World) {
    let mut other = World::new(Runtime::Containerd, &Options::default());
    let directory = all_plugins(&other.run);
    let config = std::fs::read_to_string(&other.daemon.config).unwrap();
    let config = config.replace(&format!("bin_dir = \"{DEBIAN}\""), &format!("bin_dir = {directory:?}"));
    assert!(config.contains("all-plugins"));
    std::fs::write(&other.daemon.config, config).unwrap();
    let records = other.run.join("plugin-records");
    let list = our_list("1.0.0", &records).to_string();
    std::fs::write(other.run.join("cni/10-test.conflist"), list).unwrap();
    other.daemon.spawn();
    other.ready().await;
    let mut pod = other.pod("server");
    pod.publish(k8s_cri::v1::Protocol::Tcp, 18211, 80);
    let server = web(&other, &pod).await;
    let address = other.address(&server).await;
    assert!(address.starts_with("10.83.0."), "{address}");
    assert_eq!(other.fetch(&format!("{address}:80")).text(), "It works.\n");
    let (client, id) = other.pod_with_sleeper("client").await;
    assert_eq!(other.sh(&id, &format!("wget -q -O - http://{address}/")).await, "It works.");
    for pod in [&server, &client] {
        other.stop_pod(pod).await.unwrap();
        other.remove_pod(pod).await.unwrap();
    }
    assert_eq!(other.netns.ip("-o link show master cni0"), "");
    other.finish().await;
    let _ = world;
}
