//! The first process of a pod that shares one PID namespace, in place of a pause container.
//!
//! `berth-shim pod-init --pidns-path PATH` makes the namespace, pins it by a bind mount at PATH, prints the process id of its
//! first process on stdout and ends. The first process holds nothing but the namespace: it reaps orphans and ends on SIGTERM or
//! SIGINT, and the kernel ends everything in the namespace with it. It sits in the cgroup its caller put it into.

use std::fs;
use std::path::Path;

use crate::sys::{self, Fork};

/// Runs the subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let path = crate::option(arguments, "--pidns-path")?.ok_or("pod-init: --pidns-path is missing")?;
    sys::unshare(libc::CLONE_NEWPID).map_err(|error| format!("pod-init: making a PID namespace: {error}"))?;
    match sys::fork().map_err(|error| format!("pod-init: forking: {error}"))? {
        Fork::Child => first_process(),
        Fork::Parent(pid) => {
            if let Err(error) = pin(pid, Path::new(&path)) {
                let _ = sys::kill(pid, libc::SIGKILL);
                return Err(format!("pod-init: pinning the namespace at {path}: {error}"));
            }
            println!("{pid}");
            Ok(())
        }
    }
}

fn pin(pid: i32, path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).open(path)?;
    rustix::mount::mount_bind(format!("/proc/{pid}/ns/pid"), path)?;
    Ok(())
}

fn first_process() -> ! {
    // As PID 1 of a namespace the process gets only signals that it handles: waiting for them is handling.
    let signals = sys::block_signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]);
    let _ = nix::unistd::setsid();
    let _ = nix::unistd::chdir("/");
    let _ = nix::sys::prctl::set_name(c"berth-pod-init");
    sys::close_all();
    loop {
        match sys::wait_signal(&signals) {
            libc::SIGCHLD => while sys::reap().is_some() {},
            libc::SIGTERM | libc::SIGINT => sys::exit_now(0),
            _ => {}
        }
    }
}
