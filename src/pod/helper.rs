//! The shim's program as a helper: what only a process of its own can do, done and answered at once.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use crate::shim::Program;

/// The program forks and answers at once; this is for a machine under heavy load.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs the program and returns what it printed, or why it could not do it.
pub(super) async fn run(
    program: &Program,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<String, String> {
    let (mut command, _file) = program.command(arguments);
    let child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(ANSWER, child)
        .await
        .map_err(|_| format!("{} did not answer in {}s", program.path().display(), ANSWER.as_secs()))?
        .map_err(|error| format!("{}: {error}", program.path().display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
