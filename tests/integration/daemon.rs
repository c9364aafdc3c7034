//! The daemon itself: its command line, its socket, its signals.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Command, Output};

use k8s_cri::v1::VersionRequest;
use libtest_mimic::Trial;

use crate::support::World;
use crate::support::runtime::binaries;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        socket_mode_and_stale_sockets,
        configuration_on_the_command_line,
        without_cgroups_it_says_so,
        hang_up_is_survived,
    ]
}

async fn socket_mode_and_stale_sockets(world: &mut World) {
    let metadata = std::fs::metadata(&world.daemon.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    // SIGKILL leaves the socket behind; nobody listens, so the next daemon takes it.
    world.daemon.kill();
    assert!(world.daemon.socket.exists());
    world.daemon.spawn();
    world.ready().await;
}

fn berthd(arguments: &[&str]) -> Output {
    Command::new(binaries().join("berthd")).args(arguments).output().unwrap()
}

async fn configuration_on_the_command_line(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let text = |output: &Output| {
        String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
    };
    let default = berthd(&["config", "default"]);
    assert!(default.status.success());
    let file = world.run.join("check.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, &default.stdout).unwrap();
    let check = berthd(&["--config", path, "config", "check"]);
    assert!(check.status.success(), "{}", text(&check));

    std::fs::write(&file, "version = 1\n\n[grpc]\nadress = \"/run/x.sock\"\n").unwrap();
    let check = berthd(&["--config", path, "config", "check"]);
    let said = text(&check);
    assert!(!check.status.success());
    for part in [path, ":4", "adress", "address"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // A drop-in wins over the file.
    std::fs::write(&file, "version = 1\nroot = \"/one\"\n").unwrap();
    std::fs::create_dir_all(world.run.join("conf.d")).unwrap();
    std::fs::write(world.run.join("conf.d/10-root.toml"), "root = \"/two\"\n").unwrap();
    let dump = text(&berthd(&["--config", path, "config", "dump"]));
    assert!(dump.contains("\"/two\"") && dump.contains("10-root.toml"), "{dump}");
}

/// As in the shell of `ip netns exec`, whose new /sys hides what is mounted below it.
async fn without_cgroups_it_says_so(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let directory = world.run.join("no-cgroups");
    let place = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"", "sh"])
        .arg(binaries().join("berthd"))
        .args(["--root", &place("root"), "--state", &place("state"), "--address", &place("berth.sock")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("no cgroup hierarchy is mounted below /sys/fs/cgroup"), "{said}");
    assert!(!directory.exists(), "it made directories before it looked");
}

async fn hang_up_is_survived(world: &mut World) {
    if !world.is_berth() {
        return; // containerd ends
    }
    let (_, id) = world.pod_with_sleeper("hup").await;
    world.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    world.runtime().version(VersionRequest::default()).await.unwrap();
    assert_eq!(world.sh(&id, "echo here").await, "here");
}
