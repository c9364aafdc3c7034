//! What `make install` and the Debian package are put together from.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chart::repository;
use crate::host::text;

/// Programs to install: the real ones that are asked for something, others in name only.
fn programs(directory: &Path) {
    fs::create_dir(directory).unwrap();
    symlink(env!("CARGO_BIN_EXE_berth"), directory.join("berth")).unwrap();
    symlink(env!("CARGO_BIN_EXE_berthd"), directory.join("berthd")).unwrap();
    for name in ["berth-shim", "berth-cni"] {
        fs::write(directory.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                directories.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found
}

fn make(arguments: &[&str], directory: &Path) {
    let mut command = Command::new("make");
    command.arg("--silent").args(arguments).arg(format!("DESTDIR={}", directory.join("root").display()));
    command.arg(format!("STAGE={}", directory.join("stage").display()));
    command.arg(format!("BIN={}", directory.join("bin").display()));
    // Whoever runs the tests by make has options of his own.
    command.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    let output = command.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "make {arguments:?}: {}", text(&output));
}

#[test]
fn everything_is_installed_in_its_place_and_goes_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    programs(&directory.path().join("bin"));
    make(&["install-files", "PREFIX=/usr"], directory.path());
    let there = files(&root);
    for path in [
        "usr/bin/berthd",
        "usr/bin/berth-shim",
        "usr/bin/berth-cni",
        "usr/share/man/man1/berth.1",
        "usr/share/man/man1/berth-doctor.1",
        "usr/share/man/man8/berthd.8",
        "usr/share/man/man8/containerd-shim-berth-v1.8",
        "usr/share/bash-completion/completions/berth",
        "usr/share/zsh/site-functions/_berth",
        "usr/share/fish/vendor_completions.d/berth.fish",
        "usr/share/doc/berth/examples/crictl.yaml",
        "etc/berth/config.toml",
        "lib/systemd/system/berth.service",
    ] {
        assert!(there.contains(path), "{path} in {there:#?}");
    }
    let link = fs::read_link(root.join("usr/bin/containerd-shim-berth-v1")).unwrap();
    assert_eq!(link, Path::new("berth-shim"));
    let unit = fs::read_to_string(root.join("lib/systemd/system/berth.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/berthd\n") && !unit.contains("/usr/local"), "{unit}");
    for line in ["Type=notify\n", "WatchdogSec=", "KillMode=process\n", "Delegate=yes\n"] {
        assert!(unit.contains(line), "{line} in {unit}");
    }
    let completions = fs::read_to_string(root.join("usr/share/bash-completion/completions/berth")).unwrap();
    assert!(completions.contains("_clap_complete_berth"));
    let config = root.join("etc/berth/config.toml");
    let check = Command::new(env!("CARGO_BIN_EXE_berthd"))
        .arg("--config")
        .arg(&config)
        .args(["config", "check"])
        .output();
    assert!(check.as_ref().unwrap().status.success(), "{}", text(&check.unwrap()));
    // What somebody configured stays, at an upgrade and at the end.
    fs::write(&config, "version = 1\n").unwrap();
    make(&["install-files", "PREFIX=/usr"], directory.path());
    make(&["uninstall", "PREFIX=/usr"], directory.path());
    assert_eq!(fs::read_to_string(&config).unwrap(), "version = 1\n");
    assert_eq!(files(&root), BTreeSet::from(["etc/berth/config.toml".to_owned()]));
}

/// Pages that are written by hand say all that the programs' own help says.
#[test]
fn the_daemons_page_has_all_its_options() {
    let page = fs::read_to_string(repository().join("packaging/man/berthd.8")).unwrap().replace("\\-", "-");
    for arguments in [&["--help"][..], &["config", "--help"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_berthd")).args(arguments).output().unwrap();
        let help = text(&output);
        let words = help.split_whitespace().filter(|word| word.starts_with("--"));
        let commands =
            help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
        let commands =
            commands.filter_map(|line| line.split_whitespace().next()).filter(|word| !word.starts_with('-'));
        let mut seen = 0;
        for word in words.chain(commands) {
            seen += 1;
            assert!(page.contains(word), "{word} is not in berthd.8");
        }
        assert!(seen > 4, "{help}");
    }
    let version = Command::new(env!("CARGO_BIN_EXE_berth")).arg("--version").output().unwrap();
    let directory = tempfile::tempdir().unwrap();
    programs(&directory.path().join("bin"));
    make(&["stage", "PREFIX=/usr"], directory.path());
    let staged = fs::read_to_string(directory.path().join("stage/man/berthd.8")).unwrap();
    assert!(staged.contains(text(&version).trim()), "{staged}");
    let changelog = fs::read_to_string(directory.path().join("stage/changelog")).unwrap();
    let number = text(&version).trim().replace("berth ", "");
    assert!(changelog.starts_with(&format!("berth ({number}-1) ")), "{changelog}");
}

#[test]
fn the_package_is_made_of_what_is_there() {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    let directory = tempfile::tempdir().unwrap();
    programs(&directory.path().join("bin"));
    make(&["stage", "PREFIX=/usr"], directory.path());
    let stage = directory.path().join("stage");
    let assets = package["assets"].as_array().unwrap();
    for asset in assets {
        let from = asset[0].as_str().unwrap();
        let found: PathBuf =
            match (from.strip_prefix("target/package/"), from.strip_prefix("target/release/")) {
                (Some(staged), _) => {
                    stage.join(staged.split_once('*').map_or(staged, |(directory, _)| directory))
                }
                (_, Some(program)) => directory.path().join("bin").join(program),
                _ => repository().join(from),
            };
        assert!(found.symlink_metadata().is_ok(), "{from}: no {}", found.display());
        let absolute = asset[1].as_str().unwrap();
        assert!(["usr/", "etc/"].iter().any(|top| absolute.starts_with(top)), "{absolute}");
    }
    for file in package["conf-files"].as_array().unwrap() {
        let file = file.as_str().unwrap().trim_start_matches('/');
        let shipped = assets.iter().any(|asset| {
            let (from, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
            to == file || (to.ends_with('/') && format!("{to}{}", from.rsplit('/').next().unwrap()) == file)
        });
        assert!(shipped, "{file} is no file of the package");
    }
    // Installing starts nothing; only an upgrade restarts what runs.
    let scripts = repository().join(package["maintainer-scripts"].as_str().unwrap());
    for name in ["postinst", "prerm", "postrm"] {
        let script = scripts.join(name);
        let output = Command::new("sh").arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
    let postinst = fs::read_to_string(scripts.join("postinst")).unwrap();
    for never in
        ["systemctl start", "systemctl restart", "systemctl enable berth", "invoke start", "invoke restart"]
    {
        assert!(!postinst.contains(never), "{never}");
    }
}
