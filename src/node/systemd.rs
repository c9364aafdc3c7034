//! systemd on the host, asked by the host's own `systemctl` with the host's root as its root.
//!
//! That takes no D-Bus daemon, no library and no PID namespace of the host: `systemctl` reaches the manager by its socket
//! under `/run/systemd`, which is there where the host's root is mounted with what is mounted on it. It is of one version with its
//! manager, and needs one capability, CAP_SYS_CHROOT.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use super::Error;
use super::root::HostRoot;

/// A start takes as long as the unit allows (300 s), and a stop before it.
const PATIENCE: Duration = Duration::from_secs(400);
const POLL: Duration = Duration::from_millis(20);

/// systemd on a host.
#[derive(Clone, Debug)]
pub struct Systemd {
    root: PathBuf,
    foreign: bool,
}

impl Systemd {
    /// The host's, if it runs there (sd_booted(3)).
    pub fn at(root: &HostRoot) -> Option<Self> {
        let running = root.is_directory("/run/systemd/system");
        let number = |path: &std::path::Path| std::fs::metadata(path).map(|at| (at.dev(), at.ino())).ok();
        running.then(|| Self {
            root: root.path().to_owned(),
            foreign: number(root.path()) != number(std::path::Path::new("/")),
        })
    }

    /// Asks it for something.
    ///
    /// # Errors
    /// What it said when it refused.
    pub fn call(&self, arguments: &[&str]) -> Result<(), Error> {
        let failed =
            |said| Error::Systemctl { root: self.root.clone(), arguments: arguments.join(" "), said };
        let output = self.output(arguments).map_err(|error| failed(format!("starting it: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let words: Vec<&str> = said.split_whitespace().take(100).collect();
        let ended = match output.status.code() {
            Some(code) => format!("it ended with {code}"),
            None => "it was killed, or took too long".to_owned(),
        };
        Err(failed(format!(
            "{} ({ended}); `systemctl status` and `journalctl -u` on the host say more",
            words.join(" ")
        )))
    }

    fn output(&self, arguments: &[&str]) -> std::io::Result<Output> {
        let mut command = Command::new("systemctl");
        // Opened here: the root may lack a /dev.
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        command.args(arguments).stdin(null.try_clone()?).stdout(null).stderr(Stdio::piped());
        if !self.foreign {
            return finish(&mut command);
        }
        // It would refuse to do anything in what it takes for a chroot. PATH is the host's matter.
        command.env("SYSTEMD_IGNORE_CHROOT", "1").current_dir("/");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        // The root of a thread of its own, which ends with it, so that nobody else's changes.
        let root = self.root.clone();
        let run = move || {
            nix::sched::unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chroot(&root)?;
            finish(&mut command)
        };
        let thread = std::thread::Builder::new().name("systemctl".into()).spawn(run)?;
        thread.join().map_err(|_| std::io::Error::other("its thread panicked"))?
    }
}

/// Runs a command to its end, or kills it when it takes too long.
fn finish(command: &mut Command) -> std::io::Result<Output> {
    use std::io::Read;
    let mut child = command.spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(POLL);
    };
    let mut stderr = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        // A few lines; what they start may hold the pipe open, so it is not read to its end when that never comes.
        let mut text = [0; 4096];
        let mut pipe = pipe;
        if !status.success() {
            let count = pipe.read(&mut text)?;
            stderr.extend_from_slice(&text[..count]);
        }
    }
    Ok(Output { status, stdout: Vec::new(), stderr })
}
