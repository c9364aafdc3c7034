//! SELinux labels of processes, files and mounts, and what they forbid. The second machine (tests/vm) has SELinux with `SELINUX=1`: a
//! small policy, whose types are those of container-selinux, enforcing.

use std::path::Path;

use k8s_cri::v1::{ContainerConfig, Mount, SeLinuxOption};
use libtest_mimic::Trial;
use tonic::Code;

use crate::support::World;
use crate::support::spec::{ContainerOptions, PodOptions, container, script};
use crate::support::world::assert_code;
use crate::trials;

/// The label of the shell that asks.
const OWN: &str = "tr -d '\\0' </proc/self/attr/current; echo";
const LEVEL: &str = "s0:c1,c2";
const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
/// Directories of the kernel's file systems and of the image, and a file.
const MASKED: [&str; 4] = ["/proc/irq", "/sys/firmware", "/home", "/etc/group"];
const MASKED_LIST: &str = "/home:\n\n/proc/irq:\n\n/sys/firmware:\n0";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

pub(crate) fn trials() -> Vec<Trial> {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("selinux: skipped, SELinux is not on here");
        return Vec::new();
    }
    trials![
        processes_and_execs,
        files_and_mounts,
        relabelled_volumes,
        a_pods_own_categories,
        another_pods_files_are_out_of_reach,
        privileged_containers,
        labels_that_the_policy_has_not,
        verbose_status,
        by_another_runtime,
    ]
}

fn level() -> Option<SeLinuxOption> {
    Some(SeLinuxOption { level: LEVEL.to_owned(), ..Default::default() })
}

/// The label of a file of the container, seen from outside.
fn label_of(path: &Path) -> String {
    let mut value = [0_u8; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).unwrap();
    String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned()
}

/// The label that a mount has by its options, as the mount table of the container shows it.
fn mounted_with(table: &str, point: &str) -> Option<String> {
    let line = table.lines().rev().find(|line| line.split(' ').nth(1) == Some(point))?;
    let context = line.split_once("context=")?.1;
    Some(context.trim_start_matches('"').split(['"', ' ']).next()?.to_owned())
}

async fn labelled(world: &World, mut config: ContainerConfig) -> (String, String) {
    config.security().selinux_options = level();
    let pod = world.pod("labelled");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    (pod_id, id)
}

async fn processes_and_execs(world: &mut World) {
    let image = world.image("busybox").await;
    let line = format!("{OWN}; exec sleep 100000");
    let (_, id) = labelled(world, script("main", &image, &line)).await;
    assert_eq!(world.sh(&id, "tr -d '\\0' </proc/1/attr/current").await, PROCESS);
    assert_eq!(world.sh(&id, OWN).await, PROCESS);
    // As another user, without privileges to gain.
    let mut other = script("main", &image, &format!("{OWN}; id -u"));
    other.security().selinux_options = level();
    other.security().run_as_user = Some(k8s_cri::v1::Int64Value { value: 1001 });
    other.security().no_new_privs = true;
    let (output, _) = world.output_of(&world.pod("other"), &other).await;
    assert_eq!(output, format!("{PROCESS}\n1001\n"));
    // The label outlives the daemon.
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, OWN).await, PROCESS);
}

async fn files_and_mounts(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "100000"]);
    config.security().masked_paths = MASKED.map(str::to_owned).to_vec();
    let (pod_id, id) = labelled(world, config).await;
    let table = world.sh(&id, "cat /proc/self/mounts").await;
    // Masked directories are mounts of their own; of a masked file there is /dev/null.
    assert_eq!(
        world.sh(&id, "ls /proc/irq /sys/firmware /home; wc -c </etc/group").await.trim(),
        MASKED_LIST
    );
    for point in ["/", "/dev", "/dev/pts", "/proc/irq", "/sys/firmware", "/home"] {
        assert_eq!(mounted_with(&table, point).as_deref(), Some(FILES), "{point}: {table}");
    }
    for point in ["/proc", "/sys", "/dev/mqueue", "/sys/fs/cgroup"] {
        assert_eq!(mounted_with(&table, point), None, "{point}: {table}");
    }
    // Message queues are the pod's, and take the label without an option.
    let pid = super::userns::pid(world, &id).await;
    assert_eq!(label_of(Path::new(&format!("/proc/{pid}/root/dev/mqueue"))), FILES);
    // The memory that its pod's containers share is labelled as the pod: with categories of its own. The files have none, for this
    // container has others and reads them all the same.
    let shared = mounted_with(&table, "/dev/shm").unwrap();
    let (kind, categories) = shared.split_at("system_u:object_r:container_file_t:s0".len());
    assert!(kind == "system_u:object_r:container_file_t:s0" && categories.starts_with(":c"), "{shared}");
    let directory = world.daemon.state.join("pods").join(&pod_id);
    for file in ["hosts", "hostname", "resolv.conf"] {
        assert_eq!(label_of(&directory.join(file)), kind, "{file}");
    }
    let own = world.sh(&id, "cat /etc/hosts /etc/resolv.conf >/dev/null && cat /etc/hostname").await;
    assert_eq!(own, world.sh(&id, "hostname").await);
    // What is written works as ever.
    assert_eq!(world.sh(&id, "echo x >/file && cat /file").await, "x");
}

async fn relabelled_volumes(world: &mut World) {
    let image = world.image("busybox").await;
    let volumes = world.run.join("volumes");
    for name in ["asked", "left"] {
        std::fs::create_dir_all(volumes.join(name)).unwrap();
        std::fs::write(volumes.join(name).join("file"), name).unwrap();
    }
    let before = label_of(&volumes.join("left/file"));
    let mut config = container("main", &image, &["sleep", "100000"]);
    config.mounts = ["asked", "left"]
        .map(|name| Mount {
            host_path: volumes.join(name).display().to_string(),
            container_path: format!("/{name}"),
            selinux_relabel: name == "asked",
            ..Default::default()
        })
        .into();
    let (_, id) = labelled(world, config).await;
    assert_eq!(label_of(&volumes.join("asked/file")), FILES);
    assert_eq!(label_of(&volumes.join("left/file")), before);
    assert_eq!(world.sh(&id, "cat /asked/file /left/file").await, "askedleft");
}

/// Who asks for no label gets the policy's for containers, with categories that are the same in all of a pod's containers.
async fn a_pods_own_categories(world: &mut World) {
    let mut labels = Vec::new();
    for name in ["one", "two"] {
        let (pod_id, first) = world.pod_with_sleeper(name).await;
        let image = world.image("busybox").await;
        let config = container("second", &image, &["sleep", "100000"]);
        let second = world.launch(&pod_id, &world.pod(name), &config).await.unwrap();
        let label = world.sh(&first, OWN).await;
        assert!(label.starts_with("system_u:system_r:container_t:s0:c"), "{label}");
        assert_eq!(world.sh(&second, OWN).await, label);
        labels.push(label);
    }
    assert_ne!(labels[0], labels[1]);
    // The pod's own word holds for containers that say nothing.
    let mut pod = world.pod("pod");
    pod.security().selinux_options = level();
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = world.sleeper(&pod_id, &pod).await;
    assert_eq!(world.sh(&id, OWN).await, PROCESS);
}

/// Two pods, one directory of the host: who has not the categories of its files can't touch them, though he is root in both.
async fn another_pods_files_are_out_of_reach(world: &mut World) {
    let enforcing = std::fs::read_to_string("/sys/fs/selinux/enforce").unwrap_or_default();
    if enforcing.trim() != "1" {
        println!("skipped: SELinux enforces nothing here");
        return;
    }
    let image = world.image("busybox").await;
    let shared = world.run.join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::write(shared.join("file"), "of the first").unwrap();
    let mount = |relabel| Mount {
        host_path: shared.display().to_string(),
        container_path: "/shared".to_owned(),
        selinux_relabel: relabel,
        ..Default::default()
    };
    let mut config = container("main", &image, &["sleep", "100000"]);
    config.mounts = vec![mount(true)];
    let (_, owner) = labelled(world, config).await;
    assert_eq!(world.sh(&owner, "cat /shared/file").await, "of the first");
    let mut ids = Vec::new();
    for (name, level) in [("same", LEVEL), ("other", "s0:c3,c4")] {
        let pod = world.pod(name);
        let pod_id = world.run_pod(&pod).await.unwrap();
        let mut config = container("main", &image, &["sleep", "100000"]);
        config.mounts = vec![mount(false)];
        config.security().selinux_options =
            Some(SeLinuxOption { level: level.to_owned(), ..Default::default() });
        ids.push(world.launch(&pod_id, &pod, &config).await.unwrap());
    }
    // The same categories, another pod: it is they that count.
    assert_eq!(world.sh(&ids[0], "cat /shared/file").await, "of the first");
    for line in ["cat /shared/file", "ls /shared", "echo x >/shared/file"] {
        let answer = world.exec_sync(&ids[1], &["sh", "-c", line], 20).await.unwrap();
        assert_ne!(answer.exit_code, 0, "{line}");
        let said = String::from_utf8_lossy(&answer.stderr).to_lowercase();
        assert!(said.contains("permission denied"), "{line}: {said}");
    }
    assert_eq!(world.sh(&owner, "cat /shared/file").await, "of the first");
    // Its own files are as ever.
    assert_eq!(world.sh(&ids[1], "echo mine >/file && cat /file").await, "mine");
}

async fn privileged_containers(world: &mut World) {
    let image = world.image("busybox").await;
    let mut config = container("main", &image, &["sleep", "100000"]);
    config.security().privileged = true;
    let (_, id) = labelled(world, config).await;
    let own = world.sh(&id, OWN).await;
    assert!(!own.contains("container_t"), "{own}");
    let table = world.sh(&id, "cat /proc/self/mounts").await;
    assert_eq!(mounted_with(&table, "/").as_deref(), Some(FILES));
}

async fn labels_that_the_policy_has_not(world: &mut World) {
    let image = world.image("busybox").await;
    let pod = world.pod("refused");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let of = |kind: &str, level: &str| SeLinuxOption {
        r#type: kind.to_owned(),
        level: level.to_owned(),
        ..Default::default()
    };
    for (options, word) in [
        (of("no_such_t", ""), "no_such_t"),
        (of("", "s0:c5000"), "c5000"),
        (of("a b", ""), "a b"),
        (of("a:b", ""), "a:b"),
    ] {
        let mut config = container("main", &image, &["true"]);
        config.security().selinux_options = Some(options);
        let message = assert_code(world.create(&pod_id, &pod, &config).await, Code::InvalidArgument);
        assert!(message.contains(word), "{message}");
    }
    let mut pod = world.pod("refused-pod");
    pod.security().selinux_options = Some(of("no_such_t", ""));
    let message = assert_code(world.run_pod(&pod).await, Code::InvalidArgument);
    // A file's type is not the process's: it is the container's label that is refused there.
    assert!(message.contains("no_such_t"), "{message}");
}

async fn verbose_status(world: &mut World) {
    let request = k8s_cri::v1::StatusRequest { verbose: true };
    let info = world.runtime().status(request).await.unwrap().into_inner().info;
    let features: serde_json::Value = serde_json::from_str(&info["features"]).unwrap();
    assert_eq!(features["seLinux"], true);
    let label = features["seLinuxLabels"]["containersByDefault"].as_str().unwrap();
    assert!(label.contains("container_t"), "{features}");
}

/// An OCI runtime gets the same labels in its specification.
async fn by_another_runtime(world: &mut World) {
    let image = world.image("busybox").await;
    let mut pod = world.pod("another");
    pod.security().selinux_options = level();
    let pod_id = world.run_pod_with(&pod, "runc").await.unwrap();
    let id = world.launch(&pod_id, &pod, &container("main", &image, &["sleep", "100000"])).await.unwrap();
    assert_eq!(world.sh(&id, OWN).await, PROCESS);
}
