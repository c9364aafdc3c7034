//! `berth doctor` without a daemon, on a root made for it.

use std::process::Command;

use serde_json::Value;

use crate::host::{Host, text};

/// Exit code and findings by name.
fn doctor(host: &Host, more: &[&str]) -> (i32, Vec<Value>) {
    let socket = host.path("run/nobody.sock");
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .arg("--address")
        .arg(&socket)
        .args(["doctor", "--format", "json", "--root"])
        .arg(host.root())
        .args(more)
        .output()
        .unwrap();
    let findings =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    (output.status.code().unwrap(), findings)
}

fn of<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

#[test]
fn a_daemon_that_is_not_there_is_said_and_the_rest_is_looked_at() {
    let host = Host::new();
    let before = host.snapshot();
    let (code, findings) = doctor(&host, &[]);
    assert_eq!(code, 1);
    let daemon = of(&findings, "daemon");
    assert_eq!(daemon["level"], "wrong");
    assert!(daemon["found"].as_str().unwrap().contains("is berthd running?"), "{daemon}");
    assert!(daemon["advice"].as_str().unwrap().contains("systemctl status berth"), "{daemon}");
    for check in
        ["kernel", "cgroups", "overlayfs", "CNI", "disk", "inodes", "forwarding", "clock", "other runtimes"]
    {
        of(&findings, check);
    }
    for finding in &findings {
        let advised = !finding["advice"].as_str().unwrap().is_empty();
        assert!(advised || finding["level"] == "ok", "what is not well has an advice: {finding}");
    }
    crate::host::assert_same(&before, &host.snapshot(), "it only looks");
}

#[test]
fn what_others_left_behind_is_named() {
    let host = Host::new();
    host.write("etc/cni/net.d/10-flannel.conflist", "{}");
    host.write("etc/cni/net.d/05-old.conf", "{}");
    host.write(
        "var/lib/kubelet/config.yaml",
        "cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n",
    );
    std::fs::create_dir_all(host.path("run/crio")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(host.path("run/crio/crio.sock")).unwrap());
    host.write("etc/berth.toml", "version = 1\n[cgroup]\ndriver = \"cgroupfs\"\n");
    let config = host.path("etc/berth.toml");
    let (_, findings) = doctor(&host, &["--config", config.to_str().unwrap()]);
    let cni = of(&findings, "CNI");
    assert_eq!(cni["level"], "warning");
    assert!(cni["advice"].as_str().unwrap().contains("05-old.conf"), "{cni}");
    let driver = of(&findings, "kubelet's cgroup driver");
    assert_eq!(driver["level"], "warning");
    assert!(driver["found"].as_str().unwrap().contains("cgroupfs here"), "{driver}");
    assert!(of(&findings, "kubelet's runtime")["found"].as_str().unwrap().contains("/run/crio/crio.sock"));
    assert_eq!(of(&findings, "other runtimes")["level"], "warning", "a socket that nobody listens on");
}

#[test]
fn a_configuration_that_can_t_be_read_is_wrong() {
    let host = Host::new();
    host.write("etc/berth.toml", "version = 1\n[grpc]\nadress = \"/run/x.sock\"\n");
    let config = host.path("etc/berth.toml");
    let (code, findings) = doctor(&host, &["--config", config.to_str().unwrap()]);
    let found = of(&findings, "configuration");
    assert_eq!((code, &found["level"]), (1, &Value::from("wrong")));
    assert!(found["found"].as_str().unwrap().contains("adress"), "{found}");
}
