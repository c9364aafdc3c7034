//! Shuts the test program off from the machine.
//!
//! ```text
//! cargo test ── fork ── init (PID 1 of a new PID namespace, reaps) ── fork ── the tests
//! ```
//!
//! Mounts, network devices and processes of the tests live in namespaces that nobody else sees. Files under
//! `/var/tmp/berth-test-*` and cgroups `/berth-test-*` are the only traces outside; [`run`] removes both after
//! the tests have ended, also when they were killed.

use std::path::PathBuf;
use std::process::exit;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, Uid};

use super::sys::fork;

/// Runs `tests` in namespaces of its own and ends the process with what it returns. `tests` is given the
/// run's unique name. Call it first in `main`: no thread may be running.
pub(crate) fn run(tests: impl FnOnce(&str) -> i32) -> ! {
    if !Uid::effective().is_root() {
        eprintln!("these tests make namespaces, mounts and cgroups: run them as root");
        exit(1);
    }
    let name = format!("berth-test-{}", std::process::id());
    // Read now: later, `/proc` is that of the tests' PID namespace and does not know this process.
    let hierarchies = super::leaks::hierarchies();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET)
        .expect("unsharing mount, PID and network namespaces");
    // Signals wait until they are asked for below: the clean-up comes after an interrupt, too.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD]);
    signals.thread_block().expect("blocking signals");
    let Some(init) = fork() else {
        signals.thread_unblock().expect("unblocking signals");
        become_init(&name, tests)
    };
    while signals.wait().expect("waiting for signals") != Signal::SIGCHLD {
        // With its first process the kernel ends everything in a PID namespace.
        let _ = kill(init, Signal::SIGKILL);
    }
    let code = wait_for(init);
    clean(&name, &hierarchies);
    exit(code);
}

fn become_init(name: &str, tests: impl FnOnce(&str) -> i32) -> ! {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("parent-death signal");
    mount_private_view();
    let Some(child) = fork() else { exit(tests(name)) };
    loop {
        match nix::sys::wait::wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => exit(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => exit(128 + signal as i32),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => panic!("waiting: {error}"),
        }
    }
}

/// `/proc` of the new PID namespace, an empty `/run`, and nothing that comes or goes on the host shows here.
fn mount_private_view() {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).expect("mounting /proc");
    let resolv_conf = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mounting /run");
    if let Ok(target) = std::fs::read_link("/etc/resolv.conf") {
        // On hosts with systemd-resolved the file is a link into /run, which is empty now.
        let target = PathBuf::from("/etc").join(target);
        if target.starts_with("/run") || target.starts_with("/etc/../run") {
            let _ = std::fs::create_dir_all(target.parent().unwrap());
            let _ = std::fs::write(target, resolv_conf);
        }
    }
    // libcni's cache, used by containerd only.
    if std::fs::create_dir_all("/var/lib/cni").is_ok() {
        mount(Some("tmpfs"), "/var/lib/cni", Some("tmpfs"), MsFlags::empty(), none).expect("mounting cni");
    }
}

fn wait_for(pid: Pid) -> i32 {
    match waitpid(pid, None).expect("waiting for the tests") {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 1,
    }
}

/// Removes files and cgroups that carry the run's name. By now no process of the run is left.
fn clean(name: &str, hierarchies: &[PathBuf]) {
    // What the tests mounted is still mounted here; below it nothing can be removed.
    let _ = umount2("/proc", MntFlags::MNT_DETACH);
    for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().rev() {
        let target = line.split(' ').nth(4).unwrap_or_default();
        if target.starts_with("/run") || target.contains(name) {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
    let _ = std::fs::remove_dir_all(format!("/var/tmp/{name}"));
    for hierarchy in hierarchies {
        super::leaks::remove_cgroup(&hierarchy.join(name));
    }
}
