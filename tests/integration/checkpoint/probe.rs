//! Whether there is a criu that works on this kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::netns::Netns;
use crate::support::within;

/// The program, or why none can dump a process.
pub(super) fn probe() -> Result<PathBuf, String> {
    // Where tests/setup.sh puts one that is newer than the distribution's.
    let own = std::env::current_exe().ok().and_then(|path| Some(path.ancestors().nth(3)?.join("criu/criu")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).map(|directory| directory.join("criu"));
    let program = own.into_iter().chain(others).find(|path| path.is_file()).ok_or("there is none")?;
    let images = Path::new("/run/criu-probe");
    std::fs::create_dir_all(images).map_err(|error| error.to_string())?;
    let silent = || Stdio::null();
    // In one network namespace both, whose loopback is up: criu tries what the kernel can.
    let netns = Netns::new();
    let start = || {
        // Without what the tests themselves were started with: criu knows no files of other mount namespaces.
        let line = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || eval \"exec $fd>&-\"; done; exec setsid sleep 1000";
        Command::new("bash").args(["-c", line]).stdin(silent()).stdout(silent()).stderr(silent()).spawn()
    };
    let mut sleep = netns.run(start).map_err(|error| error.to_string())?;
    let pid = sleep.id();
    let deadline = within(10);
    while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim() != "sleep"
        && std::time::Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = netns.run(|| {
        Command::new(&program)
            .args(["dump", "--leave-running", "-o", "dump.log", "-D"])
            .arg(images)
            .args(["-t", &pid.to_string()])
            .output()
    });
    let _ = sleep.kill();
    let _ = sleep.wait();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(program);
    }
    let log = std::fs::read_to_string(images.join("dump.log")).unwrap_or_default();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    Err(format!("{} could not dump a process: {}", program.display(), said.join("; ")))
}
