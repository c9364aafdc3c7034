//! PID 1 of a pod whose containers share one PID namespace: the shim's own program, which reaps orphans and sleeps.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::error::Error;

/// The program forks and answers at once; this is for a machine under heavy load.
const ANSWER: Duration = Duration::from_secs(30);

/// Starts the process and pins its PID namespace to `pin`. Returns its process id.
pub(super) async fn start(program: &Path, pin: &Path) -> Result<u32, Error> {
    let failed = |reason: String| Error::Init { reason };
    let child = Command::new(program)
        .args(["pod-init", "--pidns-path"])
        .arg(pin)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(ANSWER, child)
        .await
        .map_err(|_| failed(format!("{} did not answer in {}s", program.display(), ANSWER.as_secs())))?
        .map_err(|error| failed(format!("{}: {error}", program.display())))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().parse() {
        Ok(pid) if output.status.success() => Ok(pid),
        _ => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
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
