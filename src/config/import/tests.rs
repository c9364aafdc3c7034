#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::*;
use crate::config::{Loaded, Source};

/// A directory of programs, and what `text` becomes.
fn imported(origin: Origin, text: &str) -> (tempfile::TempDir, Import) {
    let programs = tempfile::tempdir().unwrap();
    for name in ["runc", "crun", "containerd-shim-kata-v2"] {
        std::fs::write(programs.path().join(name), "").unwrap();
    }
    let mut import = Import::new(vec![programs.path().to_owned()]);
    import.add(origin, Path::new("/etc/theirs.toml"), text).unwrap();
    (programs, import)
}

/// The daemon's own reading of it.
fn read(import: &Import) -> Loaded {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, import.file()).unwrap();
    Source { file: Some(file), ..Source::default() }.load().unwrap_or_else(|error| {
        panic!("{error}\n{}", import.file());
    })
}

fn fate(import: &Import, key: &str) -> Fate {
    let found = import.notes.iter().rfind(|note| note.key == key);
    found.unwrap_or_else(|| panic!("nothing is said of {key}: {:?}", import.notes)).fate.clone()
}

const VERSION_2: &str = r#"
version = 2
root = "/data/containerd"
[grpc]
gid = 1001
[debug]
level = "fatal"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.6"
stream_server_address = "::1"
stream_server_port = "10010"
stream_idle_timeout = "4h0m0s"
max_concurrent_downloads = 200
enable_selinux = true
disable_proc_mount = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example"]
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata.options]
ConfigPath = "/etc/kata/configuration.toml"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.gvisor]
runtime_type = "io.containerd.runsc.v1"
"#;

#[test]
fn containerd_as_it_is_widely_used() {
    let (programs, import) = imported(Origin::Containerd, VERSION_2);
    let loaded = read(&import);
    let settings = loaded.settings.to_json();
    assert_eq!(settings["grpc"]["gid"], 1001);
    assert_eq!(settings["log"]["level"], "error");
    assert_eq!(settings["streaming"]["address"], "[::1]:10010");
    assert_eq!(settings["images"]["max_parallel_downloads"], 64);
    assert_eq!(settings["images"]["config_path"][1], "/etc/docker/certs.d");
    assert_eq!(settings["network"]["cni_bin_dirs"], serde_json::json!(["/usr/lib/cni"]));
    assert_eq!(settings["cgroup"]["driver"], "systemd");
    assert_eq!(settings["default_runtime"], "runc");
    let program = |name: &str| programs.path().join(name).display().to_string();
    assert_eq!(settings["runtimes"]["runc"]["type"], "oci");
    assert_eq!(settings["runtimes"]["runc"]["path"], program("runc"));
    assert_eq!(settings["runtimes"]["kata"]["type"], "shim");
    assert_eq!(settings["runtimes"]["kata"]["path"], program("containerd-shim-kata-v2"));
    assert_eq!(settings["runtimes"]["kata"]["config"], "/etc/kata/configuration.toml");
    assert!(settings["runtimes"].get("gvisor").is_none());

    let cri = |key: &str| format!("plugins.io.containerd.grpc.v1.cri.{key}");
    assert!(matches!(fate(&import, "root"), Fate::Needless(_)));
    assert!(matches!(fate(&import, &cri("sandbox_image")), Fate::Needless(_)));
    assert_eq!(fate(&import, &cri("enable_selinux")), Fate::Becomes("selinux".into()));
    assert_eq!(settings["selinux"], "auto");
    assert!(matches!(fate(&import, &cri("registry.mirrors.docker.io.endpoint")), Fate::Missing(_)));
    let runtimes = "plugins.cri.containerd.runtimes";
    let Fate::Missing(why) = fate(&import, &format!("{runtimes}.gvisor")) else { panic!() };
    assert!(why.contains("containerd-shim-runsc-v1 is not installed"), "{why}");
    assert_eq!(fate(&import, &format!("{runtimes}.kata")), Fate::Becomes("runtimes.kata".into()));
    let privileged = cri("containerd.runtimes.kata.privileged_without_host_devices");
    let ours = "runtimes.kata.privileged_without_host_devices";
    assert_eq!(fate(&import, &privileged), Fate::Becomes(ours.into()));
    assert_eq!(settings["runtimes"]["kata"]["privileged_without_host_devices"], true);
    // Defaults that files are full of are not worth a line.
    assert!(!import.notes.iter().any(|note| note.key.ends_with("disable_proc_mount")));
}

#[test]
fn containerd_of_version_three() {
    let text = r#"
version = 3
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
discard_unpacked_layers = true
image_pull_progress_timeout = "5m0s"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10.1"
mine = "registry.example/base:1"
[plugins.'io.containerd.cri.v1.runtime']
enable_cdi = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin", "/usr/libexec/cni"]
[plugins.'io.containerd.nri.v1.nri']
disable = true
plugin_request_timeout = "3s"
[plugins.'io.containerd.grpc.v1.cri']
stream_server_port = "0"
"#;
    let (_programs, import) = imported(Origin::Containerd, text);
    let settings = read(&import).settings.to_json();
    assert_eq!(settings["images"]["discard_unpacked_layers"], true);
    assert_eq!(settings["images"]["progress_timeout"], "5m0s");
    assert_eq!(settings["images"]["pinned"], serde_json::json!(["registry.example/base:1"]));
    assert_eq!(settings["devices"]["cdi_spec_dirs"], serde_json::json!([]));
    assert_eq!(settings["network"]["cni_bin_dirs"][1], "/usr/libexec/cni");
    assert_eq!(settings["nri"]["enable"], false);
    assert_eq!(settings["nri"]["plugin_request_timeout"], "3s");
    assert_eq!(settings["streaming"]["address"], "127.0.0.1:0");
}

#[test]
fn crio_and_a_drop_in() {
    let main = r#"
[crio.api]
stream_port = "10010"
[crio.runtime]
default_runtime = "crun"
cgroup_manager = "cgroupfs"
conmon = "/usr/bin/conmon"
pids_limit = 4096
[crio.runtime.runtimes.crun]
runtime_root = "/run/crun"
runtime_path = "/usr/bin/crun"
monitor_path = "/usr/bin/conmon"
[crio.runtime.runtimes.kata]
runtime_type = "vm"
runtime_path = "/usr/bin/containerd-shim-kata-v2"
[crio.image]
pause_image = "registry.k8s.io/pause:3.10"
pinned_images = ["a.example/x:1"]
[crio.network]
plugin_dirs = ["/opt/cni/bin/"]
[crio.metrics]
enable_metrics = true
metrics_port = 9537
"#;
    let (_programs, mut import) = imported(Origin::Crio, main);
    let drop_in = "[crio.runtime]\nlog_level = \"debug\"\ncgroup_manager = \"systemd\"\n";
    import.add(Origin::Crio, Path::new("/etc/crio/crio.conf.d/10.conf"), drop_in).unwrap();
    let settings = read(&import).settings.to_json();
    assert_eq!(settings["streaming"]["address"], "127.0.0.1:10010");
    assert_eq!(settings["metrics"]["address"], "127.0.0.1:9537");
    assert_eq!(settings["default_runtime"], "crun");
    assert_eq!(settings["cgroup"]["driver"], "systemd");
    assert_eq!(settings["log"]["level"], "debug");
    assert_eq!(settings["runtimes"]["crun"]["root"], "/run/crun");
    assert_eq!(settings["runtimes"]["kata"]["type"], "shim");
    assert_eq!(settings["images"]["pinned"], serde_json::json!(["a.example/x:1"]));
    let Fate::Missing(instead) = fate(&import, "crio.runtime.pids_limit") else { panic!() };
    assert!(instead.contains("podPidsLimit"), "{instead}");
    assert!(matches!(fate(&import, "crio.runtime.conmon"), Fate::Needless(_)));
}

#[test]
fn a_handler_that_can_not_be_imported_is_no_default() {
    let text =
        "[crio.runtime]\ndefault_runtime = \"odd\"\n[crio.runtime.runtimes.odd]\nruntime_type = \"pod\"\n";
    let (_programs, import) = imported(Origin::Crio, text);
    assert_eq!(read(&import).settings.to_json()["default_runtime"], "berth");
}

#[test]
fn what_is_odd_is_said() {
    let (_programs, import) = imported(
        Origin::Containerd,
        "shiny = 1\n[debug]\nlevel = \"loud\"\n[plugins.'io.containerd.cri.v1.images']\nimage_pull_progress_timeout = \"0s\"",
    );
    assert!(matches!(fate(&import, "shiny"), Fate::Missing(_)));
    assert!(matches!(fate(&import, "debug.level"), Fate::Missing(_)));
    let timeout = "plugins.io.containerd.cri.v1.images.image_pull_progress_timeout";
    assert!(matches!(fate(&import, timeout), Fate::Missing(_)));
    read(&import);
    let error = Import::default().add(Origin::Crio, Path::new("/x.conf"), "a = [").unwrap_err();
    assert!(error.to_string().starts_with("/x.conf: "), "{error}");
}

#[test]
fn every_key_of_ours_is_one() {
    for rule in containerd::RULES.iter().chain(crio::RULES) {
        if let Outcome::Becomes(ours, _) | Outcome::Appends(ours) | Outcome::Part(ours) = rule.outcome {
            let known = crate::config::schema::KEYS.iter().any(|key| key.path == ours);
            assert!(known, "{} becomes {ours}, which is no key", rule.key);
        }
    }
}

/// The tables in `docs/` are what [`reference`] writes. `BERTH_BLESS=1` writes them anew.
#[test]
fn migration_tables_are_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migration.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (name, origin) in [("containerd", Origin::Containerd), ("CRI-O", Origin::Crio)] {
        let begin = format!("<!-- generated: keys of {name} -->\n\n");
        let start = text.find(&begin).expect("the mark") + begin.len();
        let end = start + text[start..].find("\n<!-- end -->").expect("the end's mark");
        if std::env::var_os("BERTH_BLESS").is_some() {
            text.replace_range(start..end, &reference(origin));
        } else {
            assert_eq!(&text[start..end], reference(origin), "run this test once with BERTH_BLESS=1");
        }
    }
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
}
