//! CheckpointContainer, with a real criu where one works, and with programs in its place that fail as criu may.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use k8s_cri::v1::{CheckpointContainerRequest, ContainerState, Mount};
use libtest_mimic::Trial;
use serde_json::Value;
use tonic::Code;

use crate::support::image::{Image, Layer};
use crate::support::runtime::Options;
use crate::support::spec::{ContainerOptions, script};
use crate::support::world::{Answer, assert_code};
use crate::support::{World, container, within};
use crate::trials;

mod probe;

pub(crate) fn trials() -> Vec<Trial> {
    // The daemon looks for criu when it needs it: each test puts what it wants there.
    trials![options = Options {
        network: "mode = \"builtin\"\n[checkpoint]\ncriu = \"RUN/criu\"".into(),
        ..Options::default()
    };
        a_running_container_becomes_an_archive,
        volumes_terminals_and_execs,
        a_container_goes_on_in_another_pod,
        what_a_checkpoint_image_holds_goes_on,
        restored_volumes_and_terminals,
        made_but_not_started,
        what_can_not_be_restored,
        by_the_client,
        by_runc,
        by_runc_a_container_goes_on,
        by_runc_a_terminal_goes_on,
        by_a_program_without_criu,
        what_criu_refuses,
        a_full_disk,
        requests_that_can_not_be,
        a_node_without_criu,
        a_criu_that_hangs,
        a_criu_that_dies,
        a_runtime_that_dies_leaves_nothing_frozen,
        a_daemon_that_dies_meanwhile,
    ]
}

// === criu ===

/// The real criu where it can dump a process of this kernel; prints why not otherwise.
pub(crate) fn criu() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match probe::probe() {
        Ok(path) => Some(path),
        Err(reason) => {
            println!("skipped: no working criu here: {reason}");
            None
        }
    });
    found.as_deref()
}

/// Puts a program where the daemon looks for criu.
fn program(world: &World, script: &str) {
    let path = world.run.join("criu");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Puts the real one there; false where there is none that works.
pub(crate) fn real(world: &World) -> bool {
    let Some(path) = criu() else { return false };
    program(world, &format!("exec {} \"$@\"", path.display()));
    true
}

pub(crate) async fn checkpoint(world: &World, id: &str, location: &Path, timeout: i64) -> Answer<()> {
    let request = CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.to_str().unwrap().to_owned(),
        timeout,
    };
    world.runtime().checkpoint_container(request).await.map(drop)
}

/// The files of an archive.
fn unpacked(location: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(location).unwrap());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    files
}

fn json(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(files.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys())))
        .unwrap()
}

/// Whether the container does something: its counter goes on.
async fn counts_on(world: &World, id: &str) {
    let count = async || world.sh(id, "cat /count").await.parse::<u64>().unwrap_or_default();
    let before = count().await;
    let deadline = within(20);
    while count().await <= before {
        assert!(std::time::Instant::now() < deadline, "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nothing of a checkpoint's work is left, whether it went well or not.
fn no_work_left(world: &World) {
    let deadline = within(10);
    loop {
        let left: Vec<_> =
            std::fs::read_dir(world.daemon.root.join("trash")).into_iter().flatten().flatten().collect();
        if left.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "left in the trash: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes of the program in criu's place, by what they run.
fn still_runs(word: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).split('\0').any(|part| part == word)
    })
}

/// A container that counts in memory and in a file.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; echo line $i; sleep 0.05; done";

async fn counter(world: &World, name: &str, handler: &str) -> (String, String) {
    let pod = world.pod(name);
    let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
    let image = world.image("web").await;
    let id = world.launch(&pod_id, &pod, &script("counter", &image, COUNTER)).await.unwrap();
    let deadline = within(20);
    while world.exec_sync(&id, &["test", "-s", "/count"], 10).await.unwrap().exit_code != 0 {
        assert!(std::time::Instant::now() < deadline, "it does not count");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (pod_id, id)
}

// === with a working criu ===

async fn a_running_container_becomes_an_archive(world: &mut World) {
    if !real(world) {
        return;
    }
    let (pod_id, id) = counter(world, "dumped", "").await;
    let changes = "echo new > /new && echo changed > /www/index.html && rm /etc/group && rm -r /home && \
                   mkdir /home && echo mine > /home/me";
    world.sh(&id, changes).await;
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 0).await.unwrap();
    counts_on(world, &id).await;

    assert_eq!(std::fs::metadata(&location).unwrap().mode() & 0o7777, 0o600);
    let files = unpacked(&location);
    for name in [
        "checkpoint/inventory.img",
        "checkpoint/pstree.img",
        "checkpoint/descriptors.json",
        "stats-dump",
        "status.dump",
    ] {
        assert!(files.contains_key(name), "{name} is not in {:?}", files.keys());
    }
    assert!(files.keys().any(|name| name.starts_with("checkpoint/pages-")));
    assert!(String::from_utf8_lossy(&files["dump.log"]).contains("Dumping finished successfully"));
    assert!(String::from_utf8_lossy(&files["container.log"]).contains("stdout F line 1"));
    let config = json(&files, "config.dump");
    assert_eq!((config["id"].as_str(), config["name"].as_str()), (Some(id.as_str()), Some("counter")));
    assert_eq!(config["rootfsImage"].as_str(), Some(world.reference("web").as_str()));
    assert_eq!(config["runtime"], "berth");
    assert_eq!(json(&files, "status")["Pid"].as_u64().map(|pid| pid > 1), Some(true));
    let annotations = &json(&files, "spec.dump")["annotations"];
    assert_eq!(annotations["io.kubernetes.cri.container-name"], "counter");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"].as_str(), Some(pod_id.as_str()));

    // What was changed, at the moment when the processes stood still.
    let deleted = json(&files, "deleted.files");
    let deleted: Vec<&str> = deleted.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(deleted.contains(&"/etc/group"), "{deleted:?}");
    let mut diff = BTreeMap::new();
    for entry in tar::Archive::new(files["rootfs-diff.tar"].as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        let _ = entry.read_to_string(&mut text);
        diff.insert(entry.path().unwrap().display().to_string(), text);
    }
    assert_eq!((diff["new"].as_str(), diff["www/index.html"].as_str()), ("new\n", "changed\n"));
    assert_eq!(diff["home/me"], "mine\n");
    assert!(diff.contains_key("count"), "{:?}", diff.keys());
    assert!(!diff.keys().any(|name| name.contains(".wh.")), "{:?}", diff.keys());
    no_work_left(world);
    // Once more: nothing of the first stands in the way.
    checkpoint(world, &id, &world.disk.join("second.tar"), 60).await.unwrap();
    counts_on(world, &id).await;
}

async fn volumes_terminals_and_execs(world: &mut World) {
    if !real(world) {
        return;
    }
    let pod = world.pod("richer");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("web").await;
    let data = world.run.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(world.run.join("one file"), "x").unwrap();
    let mount = |host: &Path, inside: &str| Mount {
        container_path: inside.into(),
        host_path: host.to_str().unwrap().into(),
        ..Default::default()
    };
    let mut config =
        container("terminal", &image, &["sh", "-c", "httpd -p 80 -h /www; exec 3>/data/open; exec sh"]);
    config.mounts = vec![mount(&data, "/data"), mount(&world.run.join("one file"), "/etc/one file")];
    (config.tty, config.stdin) = (true, true);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    // An exec is under way, and somebody is connected to a server inside.
    let other = id.clone();
    let mut client = world.runtime();
    let exec = tokio::spawn(async move {
        let request = k8s_cri::v1::ExecSyncRequest {
            container_id: other,
            cmd: ["sh", "-c", "touch /started; while [ ! -e /go ]; do sleep 0.05; done; echo through"]
                .map(String::from)
                .to_vec(),
            timeout: 60,
        };
        client.exec_sync(request).await
    });
    let deadline = within(20);
    while world.exec_sync(&id, &["test", "-e", "/started"], 10).await.unwrap().exit_code != 0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let address = world.address(&pod_id).await;
    let connected = world.netns.run(|| std::net::TcpStream::connect((address.as_str(), 80)).unwrap());
    let location = world.disk.join("richer.tar");
    checkpoint(world, &id, &location, 60).await.unwrap();
    drop(connected);
    assert_eq!(world.fetch(&format!("{address}:80")).status, 200, "the server serves on");
    world.sh(&id, "touch /go").await;
    let output = exec.await.unwrap().unwrap().into_inner();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (0, b"through\n".as_slice()));
    let mounts = json(&unpacked(&location), "bind.mounts");
    let kinds: BTreeMap<&str, &str> = mounts
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["destination"].as_str().unwrap(), mount["file_type"].as_str().unwrap()))
        .collect();
    assert_eq!((kinds["/data"], kinds["/etc/one file"]), ("directory", "file"));
}

async fn by_runc(world: &mut World) {
    if !real(world) {
        return;
    }
    let (_, id) = counter(world, "runc", "runc").await;
    let location = world.disk.join("runc.tar");
    checkpoint(world, &id, &location, 60).await.unwrap();
    counts_on(world, &id).await;
    let files = unpacked(&location);
    assert!(files.contains_key("checkpoint/inventory.img"), "{:?}", files.keys());
    assert!(files.contains_key("dump.log"), "{:?}", files.keys());
    assert_eq!(json(&files, "config.dump")["runtime"], "runc");
    no_work_left(world);
}

async fn by_runc_a_container_goes_on(world: &mut World) {
    if !real(world) {
        return;
    }
    let (_, id) = counter(world, "runc", "runc").await;
    world.sh(&id, "echo new > /new; rm /etc/group").await;
    let before = count(world, &id).await;
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 60).await.unwrap();
    world.stop_container(&id, 0).await.unwrap();
    let pod = world.pod("restored");
    let pod_id = world.run_pod_with(&pod, "runc").await.unwrap();
    let config = container("restored", location.to_str().unwrap(), &[]);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    counts_on(world, &id).await;
    assert!(count(world, &id).await > before);
    let deadline = within(20);
    while world.log_text(&pod, &config).is_empty() {
        assert!(std::time::Instant::now() < deadline, "it logs nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = world.log(&pod, &config).remove(0).text;
    let first: u64 = first.strip_prefix("line ").unwrap().parse().unwrap();
    assert!(first >= before, "the log begins with line {first}, the checkpoint was made at {before}");
    assert_eq!(world.sh(&id, "cat /new; ls /etc/group 2>/dev/null || true").await, "new");
    let address = world.address(&pod_id).await;
    assert!(world.sh(&id, "ip addr").await.contains(&address), "the pod's network is its own");
    world.crash_and_restart().await;
    counts_on(world, &id).await;
    checkpoint(world, &id, &world.disk.join("again.tar"), 60).await.unwrap();
    counts_on(world, &id).await;
    world.stop_container(&id, 0).await.unwrap();
    let status = world.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    // What can't be restored is told in criu's words, and nothing of it is left.
    let pod = world.pod("fails");
    let pod_id = world.run_pod_with(&pod, "runc").await.unwrap();
    program(world, "exit 1");
    let id = world.create(&pod_id, &pod, &container("fails", location.to_str().unwrap(), &[])).await.unwrap();
    assert_code(world.start_container(&id).await, Code::FailedPrecondition);
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerExited));
    program(world, "exec sleep 98764");
    let id = world.create(&pod_id, &pod, &container("never", location.to_str().unwrap(), &[])).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerCreated));
    world.remove_container(&id).await.unwrap();
    assert!(!still_runs("98764"));
}

async fn by_runc_a_terminal_goes_on(world: &mut World) {
    if !real(world) {
        return;
    }
    let pod = world.pod("terminal");
    let pod_id = world.run_pod_with(&pod, "runc").await.unwrap();
    let image = world.image("web").await;
    let line = "touch /started; while [ ! -e /go ]; do sleep 0.1; done; echo went on; sleep 100000";
    let mut config = script("terminal", &image, line);
    config.tty = true;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let deadline = within(20);
    while world.exec_sync(&id, &["test", "-e", "/started"], 10).await.unwrap().exit_code != 0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 60).await.unwrap();
    world.stop_container(&id, 0).await.unwrap();
    let mut restored = container("restored", location.to_str().unwrap(), &[]);
    restored.tty = true;
    let id = world.launch(&pod_id, &pod, &restored).await.unwrap();
    world.sh(&id, "touch /go").await;
    let deadline = within(20);
    while !world.log_text(&pod, &restored).contains("went on") {
        assert!(std::time::Instant::now() < deadline, "its terminal leads nowhere");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A program says itself whether it was built to call criu; one that can't is not asked to.
async fn by_a_program_without_criu(world: &mut World) {
    program(world, "exit 1");
    let crun = Command::new(crate::support::runtime::find("crun")).arg("features").output().unwrap();
    let features: Value = serde_json::from_slice(&crun.stdout).unwrap_or_default();
    if features["annotations"]["run.oci.crun.checkpoint.enabled"] == "true" {
        println!("skipped: this crun has criu");
        return;
    }
    let pod = world.pod("other");
    let pod_id = world.run_pod_with(&pod, "crun").await.unwrap();
    let location = world.disk.join("any.tar");
    let answer = world.create(&pod_id, &pod, &container("c", location.to_str().unwrap(), &[])).await;
    let message = assert_code(answer, Code::FailedPrecondition);
    assert!(
        message.contains("\"crun\" restores no checkpoints") && message.contains("features"),
        "{message}"
    );
}

/// What criu can't dump is told in its own words, and the container does not notice.
async fn what_criu_refuses(world: &mut World) {
    if !real(world) {
        return;
    }
    let mut pod = world.pod("refused");
    pod.linux.as_mut().unwrap().security_context.get_or_insert_default().privileged = true;
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("web").await;
    // A PID namespace within the container's.
    let mut config = container("counter", &image, &["busybox", "unshare", "-p", "-f", "sh", "-c", COUNTER]);
    config.security().privileged = true;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let deadline = within(20);
    while world.exec_sync(&id, &["test", "-s", "/count"], 10).await.unwrap().exit_code != 0 {
        assert!(std::time::Instant::now() < deadline, "it does not count");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let location = world.disk.join("refused.tar");
    let message = assert_code(checkpoint(world, &id, &location, 60).await, Code::FailedPrecondition);
    assert!(
        message.contains("criu could not do it: ") && message.contains("nested pid namespace"),
        "{message}"
    );
    // The log lies where it says, as long as the container is there.
    let log = message.rsplit_once('(').unwrap().1.trim_end_matches(')');
    assert!(std::fs::read_to_string(log).unwrap().contains("Dumping FAILED"), "{log}");
    assert!(!location.exists());
    counts_on(world, &id).await;
    no_work_left(world);
}

async fn a_full_disk(world: &mut World) {
    if !real(world) {
        return;
    }
    let (_, id) = counter(world, "full", "").await;
    let small = world.run.join("small");
    std::fs::create_dir(&small).unwrap();
    let options = Some("size=64k");
    nix::mount::mount(Some("small"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), options).unwrap();
    let location = small.join("checkpoint.tar");
    let message = assert_code(checkpoint(world, &id, &location, 60).await, Code::ResourceExhausted);
    assert!(message.contains("No space left"), "{message}");
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0, "nothing is left there");
    nix::mount::umount(&small).unwrap();
    counts_on(world, &id).await;
    no_work_left(world);
}

// === restored ===

/// The container's counter.
async fn count(world: &World, id: &str) -> u64 {
    world.sh(id, "cat /count").await.parse().unwrap()
}

async fn a_container_goes_on_in_another_pod(world: &mut World) {
    if !real(world) {
        return;
    }
    let (pod_id, id) = counter(world, "before", "").await;
    world.sh(&id, "echo new > /new && rm /etc/group && rm -r /home && mkdir /home").await;
    while count(world, &id).await < 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = count(world, &id).await;
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 0).await.unwrap();
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();

    let pod = world.pod("after");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = container("restored", location.to_str().unwrap(), &[]);
    let id = world.create(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerCreated));
    world.start_container(&id).await.unwrap();
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerRunning));
    counts_on(world, &id).await;
    assert!(count(world, &id).await > before, "it goes on where it was");
    // Its log goes on in the new container's file, and does not begin anew.
    let deadline = within(20);
    while world.log_text(&pod, &config).is_empty() {
        assert!(std::time::Instant::now() < deadline, "it logs nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = world.log(&pod, &config).remove(0).text;
    let first: u64 = first.strip_prefix("line ").unwrap().parse().unwrap();
    assert!(first > 1, "the log begins with line {first}");
    // Its files are as they were; the pod is the new one.
    assert_eq!(world.sh(&id, "cat /new; ls /home /etc/group 2>/dev/null || true").await, "new\n/home:");
    assert_eq!(world.sh(&id, "hostname").await, pod.hostname);
    let address = world.address(&pod_id).await;
    assert!(world.sh(&id, "ip addr").await.contains(&address), "the pod's network is its own");
    // In a cgroup of its own, which the daemon knows.
    let pid = world.sh(&id, "cat /proc/self/cgroup").await;
    assert!(pid.contains(&id) || std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "{pid}");
    world.crash_and_restart().await;
    counts_on(world, &id).await;
    // And once more: what was restored can be dumped.
    checkpoint(world, &id, &world.disk.join("again.tar"), 0).await.unwrap();
    counts_on(world, &id).await;
    world.stop_container(&id, 0).await.unwrap();
    let status = world.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
}

async fn what_a_checkpoint_image_holds_goes_on(world: &mut World) {
    if !real(world) {
        return;
    }
    let (_, id) = counter(world, "source", "").await;
    let before = count(world, &id).await;
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 0).await.unwrap();
    let image = Image::new(serde_json::json!({}))
        .archive(&std::fs::read(&location).unwrap())
        .annotation("org.criu.checkpoint.container.name", "counter");
    let reference = world.registry.push("test/checkpoint", "1", &image);
    world.pull(&reference).await.unwrap();
    let pod = world.pod("from-image");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.launch(&pod_id, &pod, &container("restored", &reference, &[])).await.unwrap();
    counts_on(world, &id).await;
    assert!(count(world, &id).await > before);
}

async fn restored_volumes_and_terminals(world: &mut World) {
    if !real(world) {
        return;
    }
    let pod = world.pod("first");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("web").await;
    let volume = |name: &str| {
        let path = world.run.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("name"), name).unwrap();
        std::fs::write(path.join("log"), "").unwrap();
        path
    };
    let (one, two) = (volume("one"), volume("two"));
    let mount = |path: &Path| {
        vec![Mount {
            container_path: "/data".into(),
            host_path: path.to_str().unwrap().into(),
            ..Default::default()
        }]
    };
    let mut config = container(
        "terminal",
        &image,
        &[
            "sh",
            "-c",
            "exec 3>>/data/log; echo on >&3; while [ ! -e /data/go ]; do sleep 0.1; done; echo more >&3; sleep 100000",
        ],
    );
    config.mounts = mount(&one);
    config.tty = true;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let written = |path: &Path| std::fs::metadata(path.join("log")).unwrap().len();
    let deadline = within(20);
    while written(&one) == 0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 0).await.unwrap();
    world.stop_container(&id, 0).await.unwrap();
    // criu wants a file that is open as it was: what the container wrote comes along.
    std::fs::copy(one.join("log"), two.join("log")).unwrap();
    let before = written(&two);
    assert_eq!(before, 3);

    let mut restored = container("restored", location.to_str().unwrap(), &[]);
    restored.tty = true;
    restored.mounts = mount(&two);
    let id = world.launch(&pod_id, &pod, &restored).await.unwrap();
    assert_eq!(world.sh(&id, "cat /data/name").await, "two", "the mount of the new container");
    std::fs::write(two.join("go"), "").unwrap();
    let deadline = within(20);
    while written(&two) <= before {
        assert!(std::time::Instant::now() < deadline, "it does not go on writing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A mount that it had is missing: it can't go on.
    restored.mounts = Vec::new();
    restored.metadata.as_mut().unwrap().name = "bare".into();
    let id = world.create(&pod_id, &pod, &restored).await.unwrap();
    let message = assert_code(world.start_container(&id).await, Code::FailedPrecondition);
    assert!(message.contains("criu could not do it") && message.contains("No mapping"), "{message}");
    assert_eq!(world.status(&id).await.unwrap().state, i32::from(ContainerState::ContainerExited));
}

/// Between create and start there is no process, and all that can happen to a container can happen.
async fn made_but_not_started(world: &mut World) {
    if !real(world) {
        return;
    }
    let (pod_id, id) = counter(world, "waits", "").await;
    let location = world.disk.join("checkpoint.tar");
    checkpoint(world, &id, &location, 0).await.unwrap();
    let pod = world.pod("waits");
    let named = |name: &str| container(name, location.to_str().unwrap(), &[]);
    let removed = world.create(&pod_id, &pod, &named("removed")).await.unwrap();
    world.remove_container(&removed).await.unwrap();
    let stopped = world.create(&pod_id, &pod, &named("stopped")).await.unwrap();
    world.stop_container(&stopped, 0).await.unwrap();
    let later = world.create(&pod_id, &pod, &named("later")).await.unwrap();
    world.crash_and_restart().await;
    world.start_container(&later).await.unwrap();
    counts_on(world, &later).await;
}

async fn what_can_not_be_restored(world: &mut World) {
    program(world, "exit 1");
    let pod = world.pod("never");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let path = |name: &str| world.disk.join(name);
    let create = async |location: &Path| {
        world.create(&pod_id, &pod, &container("c", location.to_str().unwrap(), &[])).await
    };
    assert_code(create(&path("missing.tar")).await, Code::NotFound);
    assert_code(create(&world.disk).await, Code::InvalidArgument);
    std::fs::write(path("garbage.tar"), vec![7; 4096]).unwrap();
    assert_code(create(&path("garbage.tar")).await, Code::InvalidArgument);
    let archive = |name: &str, files: &[(&str, &[u8])]| {
        let mut layer = Layer::new();
        for (name, bytes) in files {
            layer = layer.file(name, 0o600, bytes);
        }
        std::fs::write(path(name), layer.tar()).unwrap();
    };
    archive("empty.tar", &[("other", b"")]);
    assert_code(create(&path("empty.tar")).await, Code::InvalidArgument);
    archive("broken.tar", &[("config.dump", b"{"), ("checkpoint/inventory.img", b"")]);
    assert_code(create(&path("broken.tar")).await, Code::InvalidArgument);
    let config: &[u8] = br#"{"rootfsImageRef": "registry.example/none:1"}"#;
    archive("no-base.tar", &[("config.dump", config), ("checkpoint/inventory.img", b"")]);
    let message = assert_code(create(&path("no-base.tar")).await, Code::FailedPrecondition);
    assert!(message.contains("registry.example/none:1") && message.contains("pull it first"), "{message}");
    // What leads out of the archive goes nowhere.
    let mut climbing = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../../out");
    header.set_cksum();
    climbing.append(&header, b"x".as_slice()).unwrap();
    std::fs::write(path("climbing.tar"), climbing.into_inner().unwrap()).unwrap();
    assert_code(create(&path("climbing.tar")).await, Code::InvalidArgument);
    assert!(!world.daemon.root.join("out").exists() && !path("out").exists());
    // Nobody restores without criu.
    std::fs::remove_file(world.run.join("criu")).unwrap();
    let message = assert_code(create(&path("empty.tar")).await, Code::FailedPrecondition);
    assert!(message.contains("install the package criu"), "{message}");
    // Not one of them left something.
    assert!(world.list_containers().await.unwrap().is_empty());
    no_work_left(world);
}

async fn by_the_client(world: &mut World) {
    if !real(world) {
        return;
    }
    let (_, id) = counter(world, "client", "").await;
    let location = world.disk.join("by client.tar");
    let text = location.to_str().unwrap();
    assert_eq!(world.berth_ok(&["checkpoint", "counter", "-o", text]), text);
    assert!(unpacked(&location).contains_key("config.dump"));
    counts_on(world, &id).await;
}

// === without one ===

async fn requests_that_can_not_be(world: &mut World) {
    program(world, "exit 1");
    let pod = world.pod("requests");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let id = world.launch(&pod_id, &pod, &container("runs", &image, &["sleep", "100000"])).await.unwrap();
    let good = world.disk.join("checkpoint.tar");
    let there = world.disk.join("there.tar");
    std::fs::write(&there, "mine").unwrap();
    let refused = async |location: &Path, code| assert_code(checkpoint(world, &id, location, 0).await, code);
    for location in ["", "relative.tar", "../up.tar", "/", "/none/of/this.tar", "/etc/passwd/below.tar"] {
        let message = refused(Path::new(location), Code::InvalidArgument).await;
        assert!(message.contains("location"), "{message}");
    }
    refused(&world.disk.join("x".repeat(5000)), Code::InvalidArgument).await;
    refused(&world.disk, Code::AlreadyExists).await;
    assert!(refused(&there, Code::AlreadyExists).await.contains("there.tar"));
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "mine");
    assert_code(checkpoint(world, &id, &good, -1).await, Code::InvalidArgument);
    assert_code(checkpoint(world, &id, &good, i64::MAX).await, Code::InvalidArgument);
    assert_code(checkpoint(world, "", &good, 0).await, Code::InvalidArgument);
    assert_code(checkpoint(world, "0123456789ab", &good, 0).await, Code::NotFound);

    let created = world.create(&pod_id, &pod, &container("created", &image, &["sleep", "1"])).await.unwrap();
    let message = assert_code(checkpoint(world, &created, &good, 0).await, Code::FailedPrecondition);
    assert!(message.contains("created"), "{message}");
    world.stop_container(&id, 0).await.unwrap();
    assert_code(checkpoint(world, &id, &good, 0).await, Code::FailedPrecondition);
    assert!(!good.exists());
}

async fn a_node_without_criu(world: &mut World) {
    let (_, id) = counter(world, "without", "").await;
    let location = world.disk.join("checkpoint.tar");
    let message = assert_code(checkpoint(world, &id, &location, 0).await, Code::FailedPrecondition);
    assert!(message.contains("install the package criu"), "{message}");
    assert!(message.contains(world.run.join("criu").to_str().unwrap()), "{message}");
    counts_on(world, &id).await;
}

async fn a_criu_that_hangs(world: &mut World) {
    let (_, id) = counter(world, "hangs", "").await;
    program(world, "exec sleep 98761");
    let location = world.disk.join("checkpoint.tar");
    let message = assert_code(checkpoint(world, &id, &location, 1).await, Code::DeadlineExceeded);
    assert!(message.contains("within 1s"), "{message}");
    assert!(!still_runs("98761"));
    assert!(!location.exists());
    counts_on(world, &id).await;
    no_work_left(world);
}

async fn a_criu_that_dies(world: &mut World) {
    let (_, id) = counter(world, "dies", "").await;
    program(world, "kill -9 $$");
    let location = world.disk.join("checkpoint.tar");
    let message = assert_code(checkpoint(world, &id, &location, 0).await, Code::Internal);
    assert!(message.contains("signal: 9"), "{message}");
    assert!(!location.exists());
    counts_on(world, &id).await;
    no_work_left(world);
}

/// With an OCI runtime the container is frozen while criu works; that ends however the runtime does.
async fn a_runtime_that_dies_leaves_nothing_frozen(world: &mut World) {
    let (_, id) = counter(world, "frozen", "runc").await;
    // Found in PATH by runc, which wants to know its version first.
    for (script, code) in
        [("kill -9 $$", Code::FailedPrecondition), ("exec sleep 98762", Code::DeadlineExceeded)]
    {
        program(world, script);
        let location = world.disk.join("checkpoint.tar");
        let message = assert_code(checkpoint(world, &id, &location, 2).await, code);
        assert!(!location.exists(), "{message}");
        assert!(!still_runs("98762"));
        let state = world.status(&id).await.unwrap().state;
        assert_eq!(state, i32::from(ContainerState::ContainerRunning));
        counts_on(world, &id).await;
    }
    no_work_left(world);
}

async fn a_daemon_that_dies_meanwhile(world: &mut World) {
    let (_, id) = counter(world, "crash", "").await;
    program(world, "exec sleep 98763");
    let location = world.disk.join("checkpoint.tar");
    let (mut client, request) = (
        world.own_runtime(),
        CheckpointContainerRequest {
            container_id: id.clone(),
            location: location.to_str().unwrap().to_owned(),
            timeout: 5,
        },
    );
    let call = tokio::spawn(async move { client.checkpoint_container(request).await });
    let deadline = within(20);
    while !still_runs("98763") {
        assert!(std::time::Instant::now() < deadline, "criu was not started");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.crash_and_restart().await;
    assert!(call.await.unwrap().is_err());
    counts_on(world, &id).await;
    let deadline = within(30);
    while still_runs("98763") {
        assert!(std::time::Instant::now() < deadline, "nobody ends criu");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!location.exists());
    counts_on(world, &id).await;
    no_work_left(world);
}
