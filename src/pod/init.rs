//! PID 1 of a pod whose containers share one PID namespace: the shim's own program, which reaps orphans and sleeps.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

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

/// Ends the process; the kernel then ends all in its namespace. Does nothing when `pid` is somebody else by now: the
/// process is known by the namespace that is pinned at `pin`.
pub(super) fn end(pid: u32, pin: &Path) {
    use std::os::unix::fs::MetadataExt;
    let namespace = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let pinned = namespace(pin);
    if pid == 0 || pinned.is_none() || namespace(Path::new(&format!("/proc/{pid}/ns/pid"))) != pinned {
        return;
    }
    if let Ok(pid) = i32::try_from(pid) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}
