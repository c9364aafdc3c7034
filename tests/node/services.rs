//! What systemd is told. The root has a `systemctl` of its own, run in it for real: it writes down what it is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::host::{Host, Snapshot, assert_same, text};

/// A host on which systemd seems to run. `systemctl` notes its arguments; it fails for those in `/run/refuse`, and a service is
/// active once it was started.
fn host() -> Option<Host> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| fs::metadata(path).is_ok());
    let Some(busybox) = busybox else {
        println!("skipped: there is no busybox here to run a script in a root of its own");
        return None;
    };
    let host = Host::new();
    fs::create_dir_all(host.path("run/systemd/system")).unwrap();
    fs::create_dir(host.path("bin")).unwrap();
    fs::copy(busybox, host.path("bin/busybox")).unwrap();
    symlink("busybox", host.path("bin/sh")).unwrap();
    let script = "#!/bin/sh\n[ \"$SYSTEMD_IGNORE_CHROOT\" = 1 ] || exit 9\n[ -e /etc/hostname ] || exit 8\n\
                  echo \"$*\" >>/run/told\n[ ! -e \"/run/refuse/$1 $2\" ] || { echo \"Job for $2 failed.\" >&2; exit 1; }\n\
                  case $1 in\nis-active) [ -e /run/active ];;\nstart|restart) [ $2 != berth.service ] || : >/run/active;;\n\
                  stop) /bin/busybox rm -f /run/active;;\nesac\n";
    host.write("usr/bin/systemctl", script);
    fs::set_permissions(host.path("usr/bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    Some(host)
}

fn told(host: &Host) -> Vec<String> {
    let lines = fs::read_to_string(host.path("run/told")).unwrap_or_default();
    let _ = fs::remove_file(host.path("run/told"));
    lines.lines().map(str::to_owned).collect()
}

fn without_run(host: &Host) -> Snapshot {
    host.snapshot().into_iter().filter(|(path, _)| !path.starts_with("run")).collect()
}

#[test]
fn services_are_told_in_order_and_only_when_something_changed() {
    let Some(host) = host() else { return };
    let before = without_run(&host);
    host.install("node", "1.0.0", &[]);
    assert_eq!(
        told(&host),
        ["daemon-reload", "restart berth.service", "daemon-reload", "try-restart kubelet.service"],
        "the daemon answers before the kubelet is switched"
    );
    host.install("node", "1.0.0", &[]);
    assert_eq!(told(&host), ["is-active --quiet berth.service"]);
    host.install("node", "1.1.0", &[]);
    assert_eq!(
        told(&host),
        ["daemon-reload", "restart berth.service"],
        "an upgrade leaves the kubelet alone"
    );
    host.uninstall();
    assert_eq!(
        told(&host),
        ["daemon-reload", "try-restart kubelet.service", "stop berth.service", "daemon-reload"],
        "the kubelet is switched back first"
    );
    assert_same(&before, &without_run(&host), "uninstalled");
    host.install("runtimeclass", "1.0.0", &[]);
    host.uninstall();
    assert_eq!(
        told(&host),
        ["daemon-reload", "try-restart containerd.service", "try-restart containerd.service"]
    );
}

#[test]
fn a_service_that_does_not_start_undoes_the_installation() {
    let Some(host) = host() else { return };
    fs::create_dir(host.path("run/refuse")).unwrap();
    let refuse = |what: &str| fs::write(host.path("run/refuse").join(what), "").unwrap();
    let allow = |what: &str| fs::remove_file(host.path("run/refuse").join(what)).unwrap();
    let install = |version: &str| {
        let from = host.programs(version);
        let from = from.to_str().unwrap();
        let output =
            host.berth(&["install", "--no-check", "--mode", "node", "--version", version, "--from", from]);
        (output.status.success(), text(&output))
    };
    let before = without_run(&host);
    refuse("restart berth.service");
    let (went, said) = install("1.0.0");
    assert!(!went && said.contains("Job for berth.service failed.") && said.contains("journalctl"), "{said}");
    assert_same(&before, &without_run(&host), "the daemon did not start");
    assert_eq!(
        told(&host),
        ["daemon-reload", "restart berth.service", "stop berth.service", "daemon-reload"]
    );
    allow("restart berth.service");

    refuse("try-restart kubelet.service");
    let (went, _) = install("1.0.0");
    assert!(!went);
    assert!(!host.path("etc/systemd/system/kubelet.service.d").exists(), "the kubelet is switched back");
    allow("try-restart kubelet.service");
    // Undoing failed as well, as the kubelet refused again: what is left is on record.
    host.uninstall();
    assert_same(&before, &without_run(&host), "the kubelet did not start");

    let (went, said) = install("1.0.0");
    assert!(went, "{said}");
    told(&host);
    refuse("restart berth.service");
    let (went, said) = install("1.1.0");
    assert!(!went, "{said}");
    assert!(host.read("opt/berth/current/bin/berthd").contains("berthd 1.0.0"), "the old version is back");
    assert_eq!(
        told(&host),
        ["daemon-reload", "restart berth.service", "daemon-reload", "restart berth.service"],
        "and is started again"
    );
}
