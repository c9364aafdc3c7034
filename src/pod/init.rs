//! PID 1 of a pod whose containers share one PID namespace: the shim's own program, which reaps orphans and sleeps.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::Error;
use super::helper;
use crate::shim::Program;

/// Starts the process and pins its PID namespace to `pin`; the namespace belongs to the user namespace `user`, or to the
/// daemon's. Returns its process id.
pub(super) async fn start(program: &Program, pin: &Path, user: Option<&Path>) -> Result<u32, Error> {
    let mut arguments: Vec<&OsStr> =
        vec![OsStr::new("pod-init"), OsStr::new("--pidns-path"), pin.as_os_str()];
    if let Some(user) = user {
        arguments.extend([OsStr::new("--userns"), user.as_os_str()]);
    }
    let said = helper::run(program, arguments).await.map_err(|reason| Error::Init { reason })?;
    said.trim().parse().map_err(|_| Error::Init { reason: format!("it answered {said:?}") })
}

/// What tells one namespace from another.
fn namespace(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|found| (found.dev(), found.ino())).ok()
}

/// Whether `pid` is the process, and not somebody else by now: it is known by the namespace that is pinned at `pin`.
fn is_ours(pid: u32, pin: &Path) -> bool {
    let pinned = namespace(pin);
    pid != 0 && pinned.is_some() && namespace(Path::new(&format!("/proc/{pid}/ns/pid"))) == pinned
}

/// The process by its namespace alone.
fn find(pin: &Path) -> Option<u32> {
    namespace(pin)?;
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| {
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        is_ours(*pid, pin) && status().lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    })
}

/// Returns when the process has ended: at once when it has already. Somebody in the pod may have sent it SIGTERM.
pub(super) async fn ended(pid: u32, pin: PathBuf) {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = number.and_then(|number| pidfd_open(number, PidfdFlags::NONBLOCK).ok());
    // Looked at after it was opened: whoever has the number later is not who was opened.
    let Some(process) = process.filter(|_| is_ours(pid, &pin)) else { return };
    match crate::sys::readable(process) {
        Ok(process) => drop(process.readable().await),
        Err(error) => {
            tracing::warn!(pid, %error, "the end of a pod's first process will not be noticed");
            std::future::pending().await
        }
    }
}

/// Ends the process; the kernel then ends all in its namespace. A daemon that was killed when it had just started it has no
/// number of it; nobody else who has it is ended.
pub(super) fn end(pid: u32, pin: &Path) {
    let Some(pid) = Some(pid).filter(|pid| is_ours(*pid, pin)).or_else(|| find(pin)) else { return };
    if let Ok(pid) = i32::try_from(pid) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command, Stdio};

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;

    #[tokio::test]
    async fn it_is_found_and_ended_by_its_namespace() {
        let root = tempfile::tempdir().unwrap();
        let pin = root.path().join("pid");
        fs::write(&pin, "").unwrap();
        // A file that pins nothing is nobody's.
        end(0, &pin);
        end(std::process::id(), &pin);
        let mut parent = Command::new("unshare")
            .args(["--pid", "--fork", "sleep", "600"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let first: u32 = loop {
            let text = fs::read_to_string(&children).unwrap();
            if let Some(pid) = text.split_whitespace().next() {
                break pid.parse().unwrap();
            }
            tokio::task::yield_now().await;
        };
        let none: Option<&str> = None;
        mount(Some(format!("/proc/{first}/ns/pid").as_str()), &pin, none, MsFlags::MS_BIND, none).unwrap();
        let mut ended = Box::pin(ended(first, pin.clone()));
        let runs = futures::poll!(ended.as_mut()).is_pending();
        let found = find(&pin);
        end(0, &pin);
        ended.await;
        parent.wait().unwrap();
        let gone = super::ended(first, pin.clone());
        gone.await;
        umount2(&pin, MntFlags::MNT_DETACH).unwrap();
        assert!(runs);
        assert_eq!(found, Some(first));
    }
}
