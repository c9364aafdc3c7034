//! Roots and manifests that somebody made to harm.

use std::fs;
use std::os::unix::fs::symlink;

use crate::host::{Host, assert_same, snapshot, text};

/// An installation that must not change anything outside the root. Returns what it said, and whether it went through.
fn install(host: &Host) -> (bool, String) {
    let from = host.programs("1.0.0");
    let from = from.to_str().unwrap();
    let output =
        host.berth(&["install", "--no-check", "--mode", "node", "--version", "1.0.0", "--from", from]);
    (output.status.success(), text(&output))
}

#[test]
fn links_in_the_root_lead_nowhere_else() {
    for (link, target, goes_through) in [
        ("opt", "OUTSIDE", false),
        ("etc/berth", "OUTSIDE", false),
        ("etc/berth", "../../../../../../outside", false),
        ("opt/berth", "../../outside", false),
        ("usr/local/bin/berthd", "OUTSIDE/victim", true),
        ("etc/systemd/system/berth.service", "OUTSIDE/victim", false),
        ("etc/systemd/system/multi-user.target.wants", "OUTSIDE", false),
        ("usr/local/bin/.berthd.berth-new", "OUTSIDE/victim", true),
        ("opt/cni/bin/.berth-ipam.berth-new", "../../../../outside/victim", true),
        ("etc/crictl.yaml", "OUTSIDE/victim", true),
    ] {
        let host = Host::new();
        fs::create_dir(host.outside()).unwrap();
        fs::write(host.outside().join("victim"), "untouched").unwrap();
        let outside = snapshot(&host.outside());
        let path = host.path(link);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            let _ = fs::remove_file(&path);
        }
        symlink(target.replace("OUTSIDE", host.outside().to_str().unwrap()), &path).unwrap();
        let before = host.snapshot();
        let (went, said) = install(&host);
        assert_eq!(went, goes_through, "{link} -> {target}: {said}");
        assert_same(&outside, &snapshot(&host.outside()), link);
        if !went {
            assert!(said.contains(&format!("/{link}")), "{link}: {said}");
            assert_same(&before, &host.snapshot(), link);
        }
        host.uninstall();
        assert_same(&outside, &snapshot(&host.outside()), link);
    }
}

#[test]
fn links_inside_the_root_are_followed() {
    let host = Host::new();
    // As on systems whose /opt or /usr/local is elsewhere.
    fs::remove_dir_all(host.path("opt")).unwrap();
    fs::create_dir_all(host.path("var/opt")).unwrap();
    symlink("/var/opt", host.path("opt")).unwrap();
    let before = host.snapshot();
    let (went, said) = install(&host);
    assert!(went, "{said}");
    assert!(host.path("var/opt/berth/versions/1.0.0/bin/berthd").is_file());
    host.uninstall();
    assert_same(&before, &host.snapshot(), "/opt elsewhere");
}

#[test]
fn manifests_that_no_installation_wrote_are_not_believed() {
    let entry = |path: &str, made: &str| {
        format!(
            "{{\"format\":1,\"version\":\"1.0.0\",\"previous\":null,\"mode\":\"node\",\"entries\":[{{\"path\":\"{path}\",\"made\":{made}}}]}}"
        )
    };
    let hash = "5b6d1b1a".repeat(8);
    let file = format!("{{\"file\":{{\"sha256\":\"{hash}\"}}}}");
    let mut hostile = vec![
        entry("/etc/hostname", &file),
        entry("/../outside/victim", &file),
        entry("/opt/berth/versions/../../../etc/hostname", &file),
        entry("etc/hostname", &file),
        entry("/opt/berth/versions/1.0.0/bin/../../../../../etc/hostname", &file),
        entry("/opt/berth/current", "{\"file\":{\"sha256\":\"../../../etc/passwd\"}}"),
        entry("/opt/berth/current", "{\"script\":{}}"),
        entry("/etc/hostname", "{\"directory\":{}}"),
        "{}".into(),
        "[]".into(),
        String::new(),
        "x".repeat(2 << 20),
        format!("{{\"format\":2,{}", &entry("/opt", "{\"directory\":{}}")[12..]),
    ];
    let twice = entry("/opt/berth/current", &file);
    let one = &twice[twice.find("[{").unwrap() + 1..twice.len() - 2];
    hostile.push(twice.replace("]}", &format!(",{one}]}}")));
    for manifest in hostile {
        let host = Host::new();
        host.write("opt/berth/manifest.json", &manifest);
        let before = host.snapshot();
        for arguments in [&["uninstall"][..], &["install", "--no-check"][..], &["verify"][..]] {
            let output = host.berth(arguments);
            assert!(!output.status.success(), "{:.200}", manifest);
            let said = text(&output);
            assert!(said.contains("manifest.json"), "{:.200}: {said}", manifest);
            assert_same(&before, &host.snapshot(), &format!("{:.200}", manifest));
        }
    }
}

#[test]
fn a_manifest_may_name_what_is_not_there() {
    let host = Host::new();
    host.install("node", "1.0.0", &[]);
    fs::remove_dir_all(host.path("opt/berth/versions")).unwrap();
    fs::remove_file(host.path("etc/crictl.yaml")).unwrap();
    host.uninstall();
    assert!(!host.path("opt/berth").exists());
    assert!(!host.path("etc/crictl.yaml").exists(), "who removed ours wants none");
}

#[test]
fn what_can_not_be_brought_back_stays_on_record() {
    let host = Host::new();
    let before = host.snapshot();
    host.install("node", "1.0.0", &[]);
    let backup = host.path("opt/berth/backup");
    let copy = fs::read_dir(&backup).unwrap().next().unwrap().unwrap().path();
    let content = fs::read(&copy).unwrap();
    fs::write(&copy, "damaged").unwrap();
    let output = host.berth(&["uninstall"]);
    assert!(!output.status.success() && text(&output).contains("crictl.yaml"), "{}", text(&output));
    assert!(!host.path("etc/systemd/system/berth.service").exists(), "it does all it can");
    fs::write(&copy, content).unwrap();
    host.uninstall();
    assert_same(&before, &host.snapshot(), "mended");
}
