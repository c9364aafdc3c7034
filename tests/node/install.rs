//! Installing, again, upgrading, going back, uninstalling.

use std::fs;

use crate::host::{Host, assert_same, text};

const MODES: [&str; 2] = ["node", "runtimeclass"];

#[test]
fn a_second_installation_changes_nothing() {
    for mode in MODES {
        let host = Host::new();
        host.install(mode, "1.0.0", &[]);
        let once = host.snapshot();
        let said = host.install(mode, "1.0.0", &[]);
        assert!(said.contains("nothing changed"), "{said}");
        assert_same(&once, &host.snapshot(), mode);
        assert!(host.berth(&["verify"]).status.success());
    }
}

#[test]
fn uninstalling_leaves_the_node_as_it_was() {
    for mode in MODES {
        let host = Host::new();
        let before = host.snapshot();
        host.install(mode, "1.0.0", &[]);
        host.install(mode, "1.1.0", &[]);
        assert_ne!(before, host.snapshot());
        host.uninstall();
        assert_same(&before, &host.snapshot(), mode);
        let again = host.uninstall();
        assert!(again.contains("nothing is installed"), "{again}");
    }
}

#[test]
fn a_bare_root_is_bare_again() {
    let host = Host::new();
    fs::remove_dir_all(host.root()).unwrap();
    fs::create_dir(host.root()).unwrap();
    host.install("node", "1.0.0", &["--no-switch"]);
    assert!(host.path("opt/berth/current/bin/berthd").exists());
    host.uninstall();
    assert_same(&Default::default(), &host.snapshot(), "bare");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    for mode in MODES {
        let host = Host::new();
        let before = host.snapshot();
        let would = host.install(mode, "1.0.0", &["--dry-run", "--output", "json"]);
        assert_same(&before, &host.snapshot(), "dry");
        let did = host.install(mode, "1.0.0", &["--output", "json"]);
        let paths = |json: &str| -> std::collections::BTreeSet<String> {
            let report: serde_json::Value = serde_json::from_str(json).unwrap();
            let changes = report["changes"].as_array().unwrap();
            let path = |change: &serde_json::Value| {
                (change["path"].as_str().unwrap().to_owned(), change["what"].as_str().unwrap().to_owned())
            };
            changes
                .iter()
                .map(path)
                .filter(|(path, _)| !path.starts_with("/opt/berth/backup"))
                .map(|(path, what)| format!("{what} {path}"))
                .collect()
        };
        assert_eq!(paths(&would), paths(&did));
        let installed = host.snapshot();
        let would = host.berth(&["uninstall", "--dry-run"]);
        assert!(would.status.success() && text(&would).contains("/opt/berth/current"), "{}", text(&would));
        assert_same(&installed, &host.snapshot(), "dry uninstall");
    }
}

#[test]
fn an_upgrade_keeps_the_version_before_and_goes_back_to_it() {
    let host = Host::new();
    let versions = || {
        let mut names: Vec<_> = fs::read_dir(host.path("opt/berth/versions"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let current = || fs::read_link(host.path("opt/berth/current")).unwrap().display().to_string();
    let before = host.snapshot();
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        host.install("node", version, &[]);
        assert_eq!(current(), format!("versions/{version}"));
    }
    assert_eq!(versions(), ["1.1.0", "1.2.0"]);
    assert!(host.read("opt/berth/current/bin/berthd").contains("berthd 1.2.0"));
    // Going back takes no programs.
    let back = host.berth(&["install", "--no-check", "--mode", "node", "--version", "1.1.0"]);
    assert!(back.status.success(), "{}", text(&back));
    assert_eq!(current(), "versions/1.1.0");
    assert_eq!(versions(), ["1.1.0", "1.2.0"], "and forward again is possible");
    let gone = host.berth(&["install", "--no-check", "--mode", "node", "--version", "1.0.0"]);
    assert!(!gone.status.success() && text(&gone).contains("--from"), "{}", text(&gone));
    host.uninstall();
    assert_same(&before, &host.snapshot(), "after upgrades");
}

#[test]
fn a_node_changes_its_mode_there_and_back() {
    let host = Host::new();
    let before = host.snapshot();
    host.install("node", "1.0.0", &[]);
    assert!(host.path("etc/systemd/system/kubelet.service.d/99-berth.conf").exists());
    host.install("runtimeclass", "1.0.0", &[]);
    assert!(!host.path("etc/systemd/system/kubelet.service.d").exists());
    assert!(!host.path("etc/systemd/system/berth.service").exists());
    assert!(host.read("etc/crictl.yaml").contains("containerd.sock"), "theirs is back");
    assert!(host.read("etc/containerd/config.toml").contains("io.containerd.berth.v1"));
    host.install("node", "1.0.0", &[]);
    assert!(!host.read("etc/containerd/config.toml").contains("berth"), "theirs is back");
    host.uninstall();
    assert_same(&before, &host.snapshot(), "after all");
}

#[test]
fn what_was_put_there_is_what_the_services_need() {
    let host = Host::new();
    let config = host.outside();
    fs::create_dir(&config).unwrap();
    let config = config.join("berth.toml");
    fs::write(&config, "[log]\nlevel = \"debug\"\n").unwrap();
    host.install("node", "1.0.0", &["--config", config.to_str().unwrap()]);
    assert!(host.read("etc/berth/conf.d/10-node.toml").contains("level = \"debug\""));
    assert!(host.read("etc/systemd/system/berth.service").contains("=/opt/berth/current/bin/berthd"));
    assert!(host.read("etc/crictl.yaml").contains("unix:///run/berth/berth.sock"));
    let kubelet = host.read("etc/systemd/system/kubelet.service.d/99-berth.conf");
    assert!(
        kubelet.contains("$KUBELET_EXTRA_ARGS --container-runtime-endpoint=unix:///run/berth/berth.sock")
    );
    let link = |path: &str| fs::read_link(host.path(path)).unwrap().display().to_string();
    assert_eq!(link("opt/cni/bin/berth-bridge"), "/opt/berth/current/bin/berth-cni");
    assert_eq!(
        link("usr/local/bin/containerd-shim-berth-v1"),
        "/opt/berth/current/bin/containerd-shim-berth-v1"
    );
    assert_eq!(link("opt/berth/current/bin/containerd-shim-berth-v1"), "berth-shim");
    assert_eq!(
        link("etc/systemd/system/multi-user.target.wants/berth.service"),
        "/etc/systemd/system/berth.service"
    );
    // A configuration that the daemon would refuse is refused here, before anything is touched.
    let before = host.snapshot();
    fs::write(&config, "[log]\nlevle = \"debug\"\n").unwrap();
    let from = host.programs("1.1.0");
    let refused = host.berth(&[
        "install",
        "--no-check",
        "--mode",
        "node",
        "--version",
        "1.1.0",
        "--from",
        from.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
    ]);
    assert!(!refused.status.success() && text(&refused).contains("levle"), "{}", text(&refused));
    assert_same(&before, &host.snapshot(), "refused");
}

#[test]
fn what_others_have_or_changed_stays() {
    let host = Host::new();
    host.write("usr/local/bin/berth", "their own");
    host.install("node", "1.0.0", &[]);
    assert_eq!(host.read("usr/local/bin/berth"), "their own");
    host.write("etc/berth/conf.d/10-node.toml", "# mine now\n");
    host.write("etc/berth/config.toml", "# and mine\n");
    host.write("etc/crictl.yaml", "# mine too\n");
    let said = host.install("node", "1.1.0", &[]);
    assert!(said.contains("10-node.toml: changed since"), "{said}");
    assert_eq!(host.read("etc/berth/conf.d/10-node.toml"), "# mine now\n");
    let said = host.uninstall();
    assert!(said.contains("10-node.toml: changed since"), "{said}");
    assert_eq!(host.read("etc/berth/conf.d/10-node.toml"), "# mine now\n");
    assert_eq!(host.read("etc/berth/config.toml"), "# and mine\n");
    assert_eq!(host.read("etc/crictl.yaml"), "# mine too\n", "what was there before the last installation");
    assert!(!host.path("opt/berth").exists());
    // A program that somebody changed is no program of ours any more.
    host.install("node", "1.0.0", &[]);
    host.write("opt/berth/versions/1.0.0/bin/berthd", "theirs");
    let before = host.snapshot();
    let from = host.programs("1.0.0");
    let from = from.to_str().unwrap();
    let refused =
        host.berth(&["install", "--no-check", "--mode", "node", "--version", "1.0.0", "--from", from]);
    assert!(!refused.status.success() && text(&refused).contains("was changed"), "{}", text(&refused));
    assert_same(&before, &host.snapshot(), "refused");
    assert!(!host.berth(&["verify"]).status.success());
}

#[test]
fn containerd_s_configuration_keeps_what_was_written_meanwhile() {
    let host = Host::new();
    let theirs = host.read("etc/containerd/config.toml");
    host.install("runtimeclass", "1.0.0", &[]);
    let amended = host.read("etc/containerd/config.toml");
    host.write("etc/containerd/config.toml", &format!("{amended}\n[debug]\n  level = \"info\"\n"));
    host.install("runtimeclass", "1.0.0", &[]);
    let said = host.uninstall();
    assert!(said.contains("only our lines were taken out"), "{said}");
    assert_eq!(host.read("etc/containerd/config.toml"), format!("{theirs}\n[debug]\n  level = \"info\"\n"));
}

#[test]
fn containerd_reads_what_was_amended() {
    let Ok(version) = std::process::Command::new("containerd").arg("--version").output() else {
        println!("skipped: there is no containerd here");
        return;
    };
    let host = Host::new();
    host.install("runtimeclass", "1.0.0", &[]);
    let file = host.path("etc/containerd/config.toml");
    let dump = std::process::Command::new("containerd")
        .args(["--config", file.to_str().unwrap(), "config", "dump"])
        .output()
        .unwrap();
    let said = text(&dump);
    assert!(dump.status.success(), "{} {said}", text(&version));
    let (_, ours) = said.split_once("runtimes.berth]").expect("no runtime berth");
    assert!(ours.contains("runtime_type = \"io.containerd.berth.v1\""), "{ours}");
    assert!(said.contains("pause:3.8"), "their own settings hold");
}

#[test]
fn a_check_speaks_json_and_exits_by_what_it_found() {
    let host = Host::new();
    let output = host.berth(&["check", "--output", "json"]);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let level = |name: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == name);
        finding.unwrap_or_else(|| panic!("no {name}"))["level"].as_str().unwrap().to_owned()
    };
    assert_eq!((level("kernel").as_str(), level("overlayfs").as_str()), ("ok", "ok"));
    assert_eq!(level("kubelet"), "ok");
    let missing = findings.iter().any(|finding| finding["level"] == "missing");
    assert_eq!(output.status.code(), Some(i32::from(missing)), "{findings:#?}");
    host.write("etc/cni/net.d/10-a.conflist", "{}");
    host.write("etc/cni/net.d/20-b.conflist", "{}");
    fs::remove_file(host.path(crate::host::KUBELET)).unwrap();
    let table = text(&host.berth(&["check"]));
    assert!(table.contains("10-a.conflist, 20-b.conflist") && table.contains("WHAT TO DO"), "{table}");
}
