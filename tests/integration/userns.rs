//! Pods with a user namespace of their own (KEP-127).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerStatsRequest, ContainerStatusRequest, Device, IdMapping, ImageSpec,
    Int64Value, Mount, MountPropagation, NamespaceMode, NamespaceOption, PodSandboxConfig, SecurityProfile,
    StatusRequest, UserNamespace,
};
use libtest_mimic::Trial;
use serde_json::json;
use tonic::Code;

use crate::support::World;
use crate::support::container;
use crate::support::image::{Image, Layer, Packing};
use crate::support::spec::{ContainerOptions, PodOptions, namespaces, script};
use crate::support::world::assert_code;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        root_is_somebody_else,
        its_namespaces_belong_to_it,
        users_of_the_image,
        as_the_kubelet_asks_for_it,
        privileged,
        volumes_show_mapped_owners,
        images_as_volumes,
        standard_streams,
        processes_of_the_pod,
        on_the_network,
        survives_the_daemon,
        by_binaries,
        mappings_are_checked,
    ]
}

const UID: u32 = 131_072;
const GID: u32 = 262_144;
const COUNT: u32 = 65_536;

fn mapping(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: COUNT }]
}

fn options() -> NamespaceOption {
    let userns = UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(UID), gids: mapping(GID) };
    NamespaceOption { userns_options: Some(userns), ..namespaces() }
}

/// Whether the default handler can; says so where it can't.
async fn supported(world: &World) -> bool {
    let status = world.runtime().status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    let supported = default.features.unwrap().user_namespaces;
    if !supported {
        let reason = status.info.get("features").cloned().unwrap_or_default();
        println!("skipped: no user namespaces of pods here: {reason}");
    }
    supported
}

fn pod(world: &World, name: &str) -> PodSandboxConfig {
    let mut pod = world.pod(name);
    pod.security().namespace_options = Some(options());
    pod
}

fn inside(mut config: ContainerConfig) -> ContainerConfig {
    config.security().namespace_options = Some(options());
    config
}

async fn sleeper(world: &World, pod_id: &str, pod: &PodSandboxConfig, name: &str) -> String {
    let image = world.image("busybox").await;
    world.launch(pod_id, pod, &inside(container(name, &image, &["sleep", "100000"]))).await.unwrap()
}

/// The process id of a running container.
pub(crate) async fn pid(world: &World, id: &str) -> u64 {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = world.runtime().container_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    info["pid"].as_u64().unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.uid(), found.gid())
}

/// The writable layer of a container.
fn upper(world: &World, id: &str) -> PathBuf {
    let directory = world.daemon.root.join("containers").join(id);
    let found = ["upper", "fs", "diff"].iter().map(|name| directory.join(name)).find(|path| path.is_dir());
    found.unwrap_or_else(|| panic!("no writable layer in {}", directory.display()))
}

async fn root_is_somebody_else(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "mapped");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = sleeper(world, &pod_id, &pod, "main").await;
    let line = world.sh(&id, "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '").await;
    assert_eq!(line, format!(" 0 {UID} {COUNT}\n 0 {GID} {COUNT}"));
    assert_eq!(world.sh(&id, "id -u; id -g").await, "0\n0");
    assert_eq!(owner(Path::new(&format!("/proc/{}", pid(world, &id).await))), (UID, GID));

    // What it makes belongs to it, inside; on disk it lies with the ids that it shows inside.
    world
        .sh(&id, "echo x > /made && mkdir -p /a/b && touch /a/b/c && chown 33:44 /a/b/c && chmod 600 /a/b/c")
        .await;
    assert_eq!(world.sh(&id, "stat -c %u:%g /made /a/b/c /home /proc/1").await, "0:0\n33:44\n0:0\n0:0");
    let upper = upper(world, &id);
    assert_eq!(owner(&upper), (0, 0));
    assert_eq!(owner(&upper.join("made")), (0, 0));
    assert_eq!(owner(&upper.join("a/b/c")), (33, 44));
    // Copied up from the image, and whited out.
    world.sh(&id, "echo more >> /www/index.html && rm -r /home/web && ! ls /home/web 2>/dev/null").await;
    assert_eq!(owner(&upper.join("www/index.html")), (0, 0));

    // The pod's files, and what the kernel gives.
    let line = "for f in /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/mqueue /proc/sys/net/ipv4/ip_forward; \
                do stat -c '%n %u:%g' $f; done";
    for line in world.sh(&id, line).await.lines() {
        assert!(line.ends_with(" 0:0"), "{line}");
    }
    world.sh(&id, "echo '192.0.2.9 added' >> /etc/hosts && touch /dev/shm/x && touch /dev/mqueue/x").await;
    world
        .sh(&id, "echo x > /dev/null && head -c 9 /dev/zero /dev/urandom > /dev/null && test -c /dev/full")
        .await;
    assert_eq!(
        world.sh(&id, "cat /sys/class/net/lo/ifindex; ls /sys/fs/cgroup | wc -l").await.lines().next(),
        Some("1")
    );

    // No layer and no volume shows in the daemon's mount table: pins and shared memory are all.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = world.daemon.state.to_str().unwrap();
    let root = world.daemon.root.to_str().unwrap();
    for line in table.lines().filter(|line| line.contains(state) || line.contains(root)) {
        assert!(line.contains(" nsfs ") || line.contains(" tmpfs shm "), "{line}");
    }
    let stats = ContainerStatsRequest { container_id: id.clone() };
    let stats = world.runtime().container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
}

async fn its_namespaces_belong_to_it(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let mut pod = pod(world, "owner");
    let sysctls = &mut pod.linux.as_mut().unwrap().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = inside(container("main", &image, &["sleep", "100000"]));
    config.security().capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into(), "SYS_ADMIN".into()],
        ..Default::default()
    });
    // It mounts, which the default profile of AppArmor forbids to whoever it is.
    let kind = ProfileType::Unconfined.into();
    config.security().apparmor = Some(SecurityProfile { profile_type: kind, localhost_ref: String::new() });
    config.devices = vec![Device {
        host_path: "/dev/full".into(),
        container_path: "/dev/own/full".into(),
        permissions: "rw".into(),
    }];
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "hostname").await, "owner");
    let values = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(world.sh(&id, values).await, "77\n1");
    // As its root may do with namespaces that are its own, and with no others.
    world.sh(&id, "ip link add probe type veth peer name probe2 && ip link del probe").await;
    world.sh(&id, "hostname other && test $(hostname) = other").await;
    world.sh(&id, "mount -t tmpfs own /tmp && touch /tmp/x && umount /tmp").await;
    world.sh(&id, "! mknod /tmp/null c 1 3 2>/dev/null && ! mount -o remount,rw /proc/sys 2>/dev/null").await;
    // A device that was asked for is the host's.
    assert_eq!(
        world.sh(&id, "stat -c %t:%T /dev/own/full; echo x 2>/dev/null > /dev/own/full || echo full").await,
        "1:7\nfull"
    );
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "other");
}

async fn users_of_the_image(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "users");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("users").await;
    let mut config = inside(container("main", &image, &["sleep", "100000"]));
    config.working_dir = "/not/there/yet".into();
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(owner(Path::new(&format!("/proc/{}", pid(world, &id).await))), (UID + 1000, GID + 1000));
    for _ in 0..3 {
        // The first exec, and those that a process waited for.
        assert_eq!(
            world.sh(&id, "id -u; id -g; pwd; cat /home/web/hello").await,
            "1000\n1000\n/not/there/yet\nhello"
        );
    }
    assert_eq!(
        world.sh(&id, "stat -c %u:%g . /home/web; grep -c 1000 /proc/self/status").await.lines().next(),
        Some("0:0")
    );
    assert_eq!(owner(&upper(world, &id).join("not/there/yet")), (0, 0));
    world.sh(&id, "! touch /etc/x 2>/dev/null && touch /tmp/mine").await;
    assert_eq!(owner(&upper(world, &id).join("tmp/mine")), (1000, 1000));

    // Whoever is nobody inside is refused.
    let mut outside = inside(script("outside", &image, "true"));
    outside.security().run_as_user = Some(Int64Value { value: i64::from(COUNT) });
    assert_code(world.create(&pod_id, &pod, &outside).await, Code::InvalidArgument);
}

async fn as_the_kubelet_asks_for_it(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "hardened");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("users").await;
    let list = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
    let log = world.run.join("termination-log");
    std::fs::write(&log, "").unwrap();
    std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mut config = inside(container("main", &image, &["sleep", "100000"]));
    config.mounts = vec![Mount {
        container_path: "/dev/termination-log".into(),
        host_path: log.to_str().unwrap().into(),
        ..Default::default()
    }];
    let security = config.security();
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.run_as_group = Some(Int64Value { value: 3000 });
    security.supplemental_groups = vec![4000];
    security.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security.seccomp =
        Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    security.masked_paths = list(&[
        "/proc/asound",
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/proc/interrupts",
    ]);
    security.readonly_paths =
        list(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let groups = world.sh(&id, "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '").await;
    assert_eq!(groups.trim(), "1000\n3000\n2000 3000 4000");
    assert_eq!(
        world.sh(&id, "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l").await,
        "0\n0"
    );
    world.sh(&id, "! touch /x 2>/dev/null && touch /dev/shm/x && echo why > /dev/termination-log").await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "why\n");
    assert_eq!(
        world
            .sh(&id, "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t' ' '")
            .await,
        "CapEff: 0000000000000000\nCapBnd: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2"
    );
}

/// All capabilities, and all devices: of the namespace, and with the rights of nobody.
async fn privileged(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let mut pod = pod(world, "privileged");
    pod.security().privileged = true;
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = inside(container("main", &image, &["sleep", "100000"]));
    config.security().privileged = true;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    world.sh(&id, "mount -t tmpfs own /tmp && ip link add probe type bridge && chown 9 /home").await;
    assert_ne!(world.sh(&id, "ls /dev | wc -l").await.parse::<u32>().unwrap(), 0);
    let host = "for f in /proc/sysrq-trigger /proc/sys/kernel/panic /sys/kernel/mm/ksm/run; do \
                echo 0 2>/dev/null > $f && echo $f; done; true";
    assert_eq!(world.sh(&id, host).await, "");
}

async fn volumes_show_mapped_owners(world: &mut World) {
    if !supported(world).await {
        return;
    }
    // On a disk, and on a tmpfs; behind a directory that only root outside may enter.
    for (name, base) in [("disk", world.disk.clone()), ("tmpfs", world.run.clone())] {
        let closed = base.join(format!("closed-{name}"));
        let volume = closed.join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        for (file, id) in [("root", 0), ("web", 1000), ("far", COUNT)] {
            std::fs::write(volume.join(file), file).unwrap();
            std::os::unix::fs::chown(volume.join(file), Some(id), Some(id)).unwrap();
        }
        let pod = pod(world, &format!("volumes-{name}"));
        let pod_id = world.run_pod(&pod).await.unwrap();
        let image = world.image("volume").await;
        let mut config = inside(container("main", &image, &["sleep", "100000"]));
        let mapped = |path: &str, readonly| Mount {
            container_path: path.into(),
            host_path: volume.to_str().unwrap().into(),
            uid_mappings: mapping(UID),
            gid_mappings: mapping(GID),
            readonly,
            ..Default::default()
        };
        let plain = Mount {
            container_path: "/plain".into(),
            host_path: volume.to_str().unwrap().into(),
            ..Default::default()
        };
        let file = Mount {
            container_path: "/file".into(),
            host_path: volume.join("root").to_str().unwrap().into(),
            ..mapped("", false)
        };
        config.mounts = vec![mapped("/mapped", false), mapped("/ro", true), plain, file];
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let line = "stat -c %u:%g /mapped /mapped/root /mapped/web /mapped/far /file";
        assert_eq!(world.sh(&id, line).await, "0:0\n0:0\n1000:1000\n65534:65534\n0:0");
        world.sh(&id, "touch /mapped/new && chown 7:8 /mapped/new && echo more >> /file").await;
        assert_eq!(owner(&volume.join("new")), (7, 8));
        world.sh(&id, "! touch /ro/x 2>/dev/null").await;
        assert_eq!(
            world.sh(&id, "stat -c %u:%g /plain/root; ! touch /plain/x 2>/dev/null").await,
            "65534:65534"
        );
        // The volume that the image declares.
        assert_eq!(world.sh(&id, "touch /data/x && stat -c %u:%g /data /data/x").await, "0:0\n0:0");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains("volume"), "{table}");
    }
}

async fn images_as_volumes(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let model = Image::new(json!({}))
        .layer(Layer::new().directory("weights", 0o755).file("weights/a", 0o600, b"lower"), Packing::Gzip)
        .layer(Layer::new().owned_file("weights/b", 0o600, 1000, 1000, b"upper"), Packing::Gzip);
    world.registry.push("test/model", "1", &model);
    let reference = world.image("model").await;
    let busybox = world.image("busybox").await;
    let pod = pod(world, "model");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = inside(container("main", &busybox, &["sleep", "100000"]));
    let volume = |path: &str, image: &str| Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        ..Default::default()
    };
    config.mounts = vec![volume("/many", &reference), volume("/one", &busybox)];
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let line =
        "cat /many/weights/a /many/weights/b; echo; stat -c %u /many /many/weights/a /many/weights/b /one";
    assert_eq!(world.sh(&id, line).await, "lowerupper\n0\n0\n1000\n0");
    world.sh(&id, "! touch /many/x 2>/dev/null && ! touch /one/x 2>/dev/null").await;
}

async fn standard_streams(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "streams");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("users").await;
    // Programs open their streams once more, by name and as whoever they are.
    let line = "echo out > /dev/stdout; echo err > /dev/stderr";
    for (name, uid) in [("root", 0), ("web", 1000)] {
        let mut config = inside(script(name, &image, line));
        config.security().run_as_user = Some(Int64Value { value: uid });
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        assert_eq!(world.wait_exit(&id).await.exit_code, 0, "{name}");
        let mut lines: Vec<_> = world.log(&pod, &config).into_iter().map(|line| line.text).collect();
        lines.sort();
        assert_eq!(lines, ["err", "out"], "{name}");
        let mut config = inside(container(&format!("{name}-exec"), &image, &["sleep", "100000"]));
        config.security().run_as_user = Some(Int64Value { value: uid });
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        for _ in 0..2 {
            let answer = world.exec_sync(&id, &["sh", "-c", line], 10).await.unwrap();
            assert_eq!((answer.stdout.as_slice(), answer.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        }
    }
    // And with a terminal.
    let mut config =
        inside(script("terminal", &image, "test -t 1 && stat -c %u $(tty) && echo ok > /dev/tty"));
    config.tty = true;
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.wait_exit(&id).await.exit_code, 0, "{}", world.log_text(&pod, &config));
    assert!(world.log_text(&pod, &config).contains("ok"));
}

async fn processes_of_the_pod(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let mut shared = options();
    shared.pid = NamespaceMode::Pod.into();
    let mut pod = world.pod("shared");
    pod.security().namespace_options = Some(shared.clone());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("a", &image, &["sleep", "11111"]);
    config.security().namespace_options = Some(shared.clone());
    let a = world.launch(&pod_id, &pod, &config).await.unwrap();
    let mut config = container("b", &image, &["sleep", "22222"]);
    config.security().namespace_options = Some(shared.clone());
    let b = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&b, "ps -o args | grep -c '[s]leep 11111'; stat -c %u /proc/1").await, "1\n0");
    // The first process is the pod's, and so nobody on the host.
    assert_eq!(world.sh(&b, "grep Uid: /proc/1/status | tr -s '\\t ' ' '").await, "Uid: 0 0 0 0");
    assert_eq!(
        world.sh(&b, "readlink /proc/self/ns/user").await,
        world.sh(&a, "readlink /proc/self/ns/user").await
    );
    let mut debugger = container("debugger", &image, &["sleep", "33333"]);
    shared.pid = NamespaceMode::Target.into();
    shared.target_id = a.clone();
    debugger.security().namespace_options = Some(shared);
    let debugger = world.launch(&pod_id, &pod, &debugger).await.unwrap();
    assert_eq!(world.sh(&debugger, "ps -o args | grep -c '[s]leep 11111'").await, "1");
    world.restart().await;
    assert_eq!(world.sh(&b, "echo alive").await, "alive");

    // A namespace of one container, and another that looks into it.
    let plain = self::pod(world, "target");
    let plain_id = world.run_pod(&plain).await.unwrap();
    let target = sleeper(world, &plain_id, &plain, "app").await;
    let mut debugger = inside(container("debugger", &image, &["sleep", "44444"]));
    let namespaces = debugger.security().namespace_options.as_mut().unwrap();
    namespaces.pid = NamespaceMode::Target.into();
    namespaces.target_id = target;
    let debugger = world.launch(&plain_id, &plain, &debugger).await.unwrap();
    assert_eq!(world.sh(&debugger, "tr '\\0' ' ' < /proc/1/cmdline").await, "sleep 100000");
}

async fn on_the_network(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "web");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("web").await;
    let config = inside(script("main", &image, "echo mapped > /www/index.html; exec httpd -f -p 80 -h /www"));
    world.launch(&pod_id, &pod, &config).await.unwrap();
    let address = world.address(&pod_id).await;
    assert_eq!(world.fetch(&format!("{address}:80")).text(), "mapped\n");

    // In the host's network the rest is the pod's own.
    let mut node = options();
    node.network = NamespaceMode::Node.into();
    let mut pod = world.pod("node");
    pod.hostname = String::new();
    pod.security().namespace_options = Some(node.clone());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["sleep", "100000"]);
    config.security().namespace_options = Some(node);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let links = world.netns.ip("-o link").lines().count();
    assert_eq!(
        world.sh(&id, "ip -o link | wc -l; ls /sys/class/net | grep -c lo").await,
        format!("{links}\n1")
    );
    world.sh(&id, "! touch /sys/kernel/x 2>/dev/null && ! ip link add x type veth 2>/dev/null").await;
}

async fn survives_the_daemon(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let pod = pod(world, "lasting");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let id = sleeper(world, &pod_id, &pod, "first").await;
    let namespace = world.sh(&id, "readlink /proc/self/ns/user").await;
    world.crash_and_restart().await;
    assert_eq!(world.sh(&id, "readlink /proc/self/ns/user").await, namespace);
    let second = sleeper(world, &pod_id, &pod, "second").await;
    assert_eq!(world.sh(&second, "readlink /proc/self/ns/user; id -u").await, format!("{namespace}\n0"));
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    for moment in [0, 3, 6, 10, 20, 40] {
        let pod = self::pod(world, &format!("killed-{moment}"));
        let _ = super::restart::killed_during(world, moment, world.run_pod(&pod)).await;
        world.crash_and_restart().await;
        for found in world.list_pods().await.unwrap() {
            world.remember(&found.id);
            if found.id != pod_id {
                world.remove_pod(&found.id).await.unwrap();
            }
        }
    }
    assert_eq!(world.sh(&second, "echo alive").await, "alive");
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    world.no_leaks();
}

async fn by_binaries(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let status = world.runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    for handler in ["runc", "crun"] {
        let features = status.runtime_handlers.iter().find(|found| found.name == handler).unwrap().features;
        let pod = pod(world, handler);
        if !features.unwrap().user_namespaces {
            let message = assert_code(world.run_pod_with(&pod, handler).await, Code::Unimplemented);
            assert!(message.contains("user namespaces"), "{message}");
            continue;
        }
        let volume = world.disk.join(format!("volume-{handler}"));
        std::fs::create_dir_all(&volume).unwrap();
        let pod_id = world.run_pod_with(&pod, handler).await.unwrap();
        let image = world.image("users").await;
        let mut config = inside(container("main", &image, &["sleep", "100000"]));
        config.mounts = vec![Mount {
            container_path: "/mapped".into(),
            host_path: volume.to_str().unwrap().into(),
            uid_mappings: mapping(UID),
            gid_mappings: mapping(GID),
            ..Default::default()
        }];
        config.security().run_as_user = Some(Int64Value { value: 0 });
        let id = world.launch(&pod_id, &pod, &config).await.unwrap();
        let line = "echo x > /made; touch /mapped/x; stat -c %u:%g /made /mapped /etc/hosts /dev/shm";
        assert_eq!(world.sh(&id, line).await, "0:0\n0:0\n0:0\n0:0", "{handler}");
        assert_eq!(owner(&upper(world, &id).join("made")), (0, 0));
        assert_eq!(owner(&volume.join("x")), (0, 0));
        assert_eq!(owner(Path::new(&format!("/proc/{}", pid(world, &id).await))), (UID, GID));
    }
}

async fn mappings_are_checked(world: &mut World) {
    if !supported(world).await {
        return;
    }
    let with = |change: &dyn Fn(&mut NamespaceOption)| {
        let mut options = options();
        change(&mut options);
        let mut pod = world.pod("wrong");
        pod.security().namespace_options = Some(options);
        pod
    };
    let userns = |change: &dyn Fn(&mut UserNamespace)| {
        with(&|options| change(options.userns_options.as_mut().unwrap()))
    };
    let twice = [mapping(UID), mapping(GID)].concat();
    for pod in [
        userns(&|userns| userns.uids.clear()),
        userns(&|userns| userns.gids = twice.clone()),
        userns(&|userns| userns.uids[0].length = 0),
        userns(&|userns| userns.uids[0].container_id = 1),
        userns(&|userns| userns.gids[0].host_id = u32::MAX - 2),
        userns(&|userns| userns.mode = NamespaceMode::Node.into()),
        userns(&|userns| userns.mode = NamespaceMode::Target.into()),
        userns(&|userns| userns.mode = 77),
        with(&|options| options.pid = NamespaceMode::Node.into()),
        with(&|options| options.ipc = NamespaceMode::Node.into()),
    ] {
        assert_code(world.run_pod(&pod).await, Code::InvalidArgument);
    }

    let pod = pod(world, "right");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut other = inside(script("other", &image, "true"));
    other.security().namespace_options.as_mut().unwrap().userns_options.as_mut().unwrap().uids = mapping(GID);
    assert_code(world.create(&pod_id, &pod, &other).await, Code::InvalidArgument);
    let mut shared = inside(script("shared", &image, "true"));
    shared.mounts = vec![Mount {
        container_path: "/run".into(),
        host_path: "/run".into(),
        propagation: MountPropagation::PropagationBidirectional.into(),
        ..Default::default()
    }];
    let message = assert_code(world.create(&pod_id, &pod, &shared).await, Code::InvalidArgument);
    assert!(message.contains("user namespace"), "{message}");
    // What says nothing gets the pod's.
    let silent = world.launch(&pod_id, &pod, &container("silent", &image, &["sleep", "1000"])).await.unwrap();
    assert_eq!(world.sh(&silent, "cat /proc/self/uid_map | tr -s ' '").await, format!(" 0 {UID} {COUNT}"));
}
