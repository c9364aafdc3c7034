//! The first process of a pod that shares one PID namespace, in place of a pause container.
//!
//! `berth-shim pod-init --pidns-path PATH` makes the namespace, pins it by a bind mount at PATH, prints the process id of its
//! first process on stdout and ends. With `--userns PATH` it belongs to that user namespace, and its first process is root
//! there. The first process holds nothing but the namespace: it reaps orphans and ends on SIGTERM or SIGINT, and the kernel
//! ends everything in the namespace with it. It sits in the cgroup its caller put it into.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::pod_namespaces::pin;
use crate::sys::{self, Fork};
use crate::userns;

/// Runs the subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let path = crate::option(arguments, "--pidns-path")?.ok_or("pod-init: --pidns-path is missing")?;
    let userns = match crate::option(arguments, "--userns")? {
        Some(path) => {
            let opened = File::open(&path);
            Some(opened.map_err(|error| format!("pod-init: opening the user namespace {path}: {error}"))?)
        }
        None => None,
    };
    let pid = start(userns.as_ref()).map_err(|error| format!("pod-init: making a PID namespace: {error}"))?;
    if let Err(error) = pin(&format!("/proc/{pid}/ns/pid"), Path::new(&path)) {
        let _ = sys::kill(pid, libc::SIGKILL);
        return Err(format!("pod-init: pinning the namespace at {path}: {error}"));
    }
    println!("{pid}");
    Ok(())
}

/// Starts the first process from a child of ours: who has entered a user namespace can't pin anything any more.
fn start(userns: Option<&File>) -> io::Result<i32> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    match sys::fork()? {
        Fork::Child => {
            drop(ours);
            let result = enter(userns).and_then(|()| sys::fork());
            let (pid, error) = match &result {
                Ok(Fork::Child) => first_process(),
                Ok(Fork::Parent(pid)) => (*pid, 0),
                Err(error) => (0, error.raw_os_error().unwrap_or(libc::EIO)),
            };
            let answer = [pid.to_le_bytes(), error.to_le_bytes()].concat();
            let _ = theirs.write_all(&answer);
            sys::exit_now(0)
        }
        Fork::Parent(_) => {
            drop(theirs);
            let mut answer = [0; 8];
            ours.read_exact(&mut answer)?;
            let [a, b, c, d, e, f, g, h] = answer;
            match i32::from_le_bytes([e, f, g, h]) {
                0 => Ok(i32::from_le_bytes([a, b, c, d])),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

fn enter(userns: Option<&File>) -> io::Result<()> {
    if let Some(userns) = userns {
        userns::enter(userns)?;
    }
    sys::unshare(libc::CLONE_NEWPID)
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
