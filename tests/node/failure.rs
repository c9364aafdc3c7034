//! Installations that end half-way: by an error at any step, by a disk that is full at any step, by SIGKILL at any moment.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth::node::plan::{Content, Plan, Standing, Step};
use berth::node::{HostRoot, Manifest, Mode, apply};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use crate::host::{self, Host, assert_same, snapshot, text};

/// A step that fails: its directory is a file.
fn impossible() -> Step {
    Step::File {
        path: "/etc/hostname/x".try_into().unwrap(),
        content: Content::Bytes(b"x".to_vec()),
        mode: 0o644,
        standing: Standing::Needed,
    }
}

fn run(host: &Host, mode: Mode, version: &str, fail_at: Option<usize>) -> Result<usize, String> {
    let root = HostRoot::lock(&host.root()).unwrap();
    let manifest = Manifest::load(&root).unwrap();
    let mut plan = Plan::make(&host.options(mode, version), &root, manifest.as_ref()).unwrap();
    let steps = plan.steps.len();
    if let Some(at) = fail_at {
        plan.steps.insert(at, impossible());
    }
    apply::run(&root, &plan).map(|_| steps).map_err(|error| error.to_string())
}

#[test]
fn an_error_at_any_step_leaves_the_node_as_it_was() {
    for mode in [Mode::Node, Mode::RuntimeClass] {
        let host = Host::new();
        let bare = host.snapshot();
        let steps = run(&Host::new(), mode, "1.0.0", None).unwrap();
        assert!(steps > 20);
        for at in 0..=steps {
            let error = run(&host, mode, "1.0.0", Some(at)).unwrap_err();
            assert!(error.contains("/etc/hostname/x") && error.contains("as it was"), "{error}");
            assert_same(&bare, &host.snapshot(), &format!("first installation, step {at}"));
        }
        run(&host, mode, "1.0.0", None).unwrap();
        let installed = host.snapshot();
        for at in 0..=steps {
            run(&host, mode, "1.1.0", Some(at)).unwrap_err();
            assert_same_but_manifest_time(&installed, &host, &format!("upgrade, step {at}"));
        }
        // From one mode into the other, and a program of the same version that changed.
        let other = if mode == Mode::Node { Mode::RuntimeClass } else { Mode::Node };
        fs::write(host.programs("1.0.0").join("berthd"), "#!/bin/sh\n# rebuilt").unwrap();
        for at in 0..=run(&Host::new(), other, "1.0.0", None).unwrap() {
            run(&host, other, "1.0.0", Some(at)).unwrap_err();
            assert_same_but_manifest_time(&installed, &host, &format!("other mode, step {at}"));
        }
        host.uninstall();
        assert_same(&bare, &host.snapshot(), "uninstalled");
    }
}

/// The manifest is written again when it is put back: its content is the same, its time is not.
fn assert_same_but_manifest_time(before: &host::Snapshot, host: &Host, when: &str) {
    let strip = |snapshot: &host::Snapshot| {
        let mut snapshot = snapshot.clone();
        let manifest = snapshot.remove(Path::new("opt/berth/manifest.json")).unwrap();
        let (_, content) = manifest.split_once(')').unwrap();
        snapshot.insert("opt/berth/manifest.json".into(), content.to_owned());
        snapshot
    };
    assert_same(&strip(before), &strip(&host.snapshot()), when);
}

/// Runs `test` on a thread with a mount namespace of its own. `false` where this is not allowed.
fn with_own_mounts(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let none = None::<&str>;
            let private =
                nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).and_then(|()| {
                    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                });
            match private {
                Ok(()) => test(),
                Err(error) => println!("skipped: no mount namespace of one's own: {error}"),
            }
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A host on a tmpfs with these bounds, mounted over `at`.
fn small_host(at: &Path, options: &str) {
    nix::mount::mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    host::populate(at);
}

#[test]
fn a_disk_that_is_full_at_any_step_is_as_it_was() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let programs = directory.path().join("programs");
        let options = berth::node::Options {
            root: root.clone(),
            mode: Mode::Node,
            version: Some("1.0.0".into()),
            from: Some(host::programs(&programs, "1.0.0")),
            ..Default::default()
        };
        for bound in ["nr_inodes", "size"] {
            let (mut failures, mut step) = (0, 0);
            loop {
                step += 1;
                let limit = match bound {
                    "size" => format!("size={}", 48 * 1024 + step * 4096),
                    _ => format!("nr_inodes={}", 36 + step),
                };
                small_host(&root, &limit);
                let before = snapshot(&root);
                let outcome = berth::node::install(&options, false);
                match &outcome {
                    Ok(_) => {
                        berth::node::uninstall(&root, false).unwrap();
                        assert_same(&before, &snapshot(&root), &format!("{limit}: uninstalled"));
                    }
                    Err(error) => {
                        let error = error.to_string();
                        assert!(error.contains("No space left") && error.contains("as it was"), "{error}");
                        assert_same(&before, &snapshot(&root), &limit);
                        failures += 1;
                    }
                }
                nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).unwrap();
                if outcome.is_ok() {
                    break;
                }
                assert!(step < 200, "{limit} is still too small");
            }
            assert!(failures > 8, "only {failures} failures by {bound}");
        }
    });
}

#[test]
fn a_root_without_room_is_found_before_anything_is_written() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        small_host(directory.path(), "size=4m");
        let root = directory.path().to_str().unwrap();
        let before = snapshot(directory.path());
        let programs = tempfile::tempdir().unwrap();
        let from = host::programs(programs.path(), "1.0.0");
        for arguments in [
            vec!["node", "check", "--root", root],
            vec!["node", "install", "--root", root, "--from", from.to_str().unwrap()],
        ] {
            let output = Command::new(env!("CARGO_BIN_EXE_berth")).args(arguments).output().unwrap();
            let said = text(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("space for programs") && said.contains("make room"), "{said}");
        }
        assert_same(&before, &snapshot(directory.path()), "too small");
        nix::mount::umount2(directory.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_kill_at_any_moment_can_be_taken_back_and_gone_on_from() {
    let host = Host::new();
    let bare = host.snapshot();
    let from = host.programs("1.0.0");
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["node", "install", "--no-check", "--mode", "node", "--version", "1.0.0", "--from"]);
        command.arg(&from).arg("--root").arg(host.root());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let started = Instant::now();
    assert!(command().status().unwrap().success());
    let whole = started.elapsed();
    host.uninstall();
    let moments = 24;
    for moment in 0..moments {
        let mut child = command().spawn().unwrap();
        // Where in the installation this hits is the scheduler's choice; what follows holds for every place.
        std::thread::sleep(whole * moment / moments + Duration::from_micros(300));
        child.kill().unwrap();
        child.wait().unwrap();
        if moment % 2 == 0 {
            host.install("node", "1.0.0", &[]);
            assert!(host.berth(&["verify"]).status.success());
        }
        host.uninstall();
        assert_same(&bare, &host.snapshot(), &format!("killed at {moment} of {moments}"));
    }
}

#[test]
fn one_installation_at_a_time() {
    let host = Host::new();
    let lock = HostRoot::lock(&host.root()).unwrap();
    let refused = host.berth(&["uninstall"]);
    assert!(!refused.status.success() && text(&refused).contains("another installation"));
    drop(lock);
    host.uninstall();
}
