//! Programs that take a container's output, as containerd's shims start them for `binary://` (containerd,
//! `core/runtime/v2/README.md`, "Logging").
//!
//! ```text
//!  container ──stdout──▶ 3 ┐
//!            ──stderr──▶ 4 ├ logger, with CONTAINER_ID and CONTAINER_NAMESPACE in an otherwise empty environment
//!       shim ◀──ready─── 5 ┘
//! ```
//!
//! The container writes to the logger's pipes itself: the shim copies nothing, and holds none of their ends. So a logger that is slow
//! holds the container back, and when one is gone the container's writes break, as under containerd's own shim. Output has ended when
//! the last process has; Delete waits for the logger to be done with it, within bounds.
//!
//! The process that creates the container starts the logger; it becomes the shim's child when that one ends.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::job::Reporter;
use crate::null::null;
use crate::status::{Code, Failure};
use crate::sys;
use crate::uri::Command;

/// A logger that has not said by then that it is ready does not get to it.
const READY_MAX: Duration = Duration::from_secs(30);
/// What ends is ended by then.
const ENDING_MAX: Duration = Duration::from_secs(1);
/// How long a logger may write on when output has ended before it is told to end, and how long then.
const REST_MAX: Duration = Duration::from_secs(2);
const FAREWELL: Duration = Duration::from_secs(10);

/// A logger to be started, with the ends of the pipes that it reads.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) command: Command,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// For whom a logger is started.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    /// The container, or the exec.
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) bundle: &'a Path,
}

/// One that was started.
#[derive(Debug)]
pub(crate) struct Logger {
    /// The exec; empty for the container itself.
    pub(crate) owner: String,
    pub(crate) pid: i32,
    pub(crate) process: OwnedFd,
}

impl Feed {
    /// What has to be open in the process that starts it.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.stdout.as_raw_fd(), self.stderr.as_raw_fd()]
    }

    /// Starts the logger and returns when it is ready.
    pub(crate) fn start(self, client: &Client<'_>, reporter: &Reporter) -> Result<(), Failure> {
        let path = self.command.path.display();
        let failed =
            |what: &str, error: &std::io::Error| Failure::doing(&format!("{what} the logger {path}"), error);
        let (ready, tells) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("preparing", &error.into()))?;
        let mut command = std::process::Command::new(&self.command.path);
        command
            .args(&self.command.arguments)
            .env_clear()
            .env("CONTAINER_ID", client.id)
            .env("CONTAINER_NAMESPACE", client.namespace)
            .current_dir(client.bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let [stdout, stderr] = self.descriptors();
        // What std makes to hear of a failed exec must not be where the logger's descriptors go.
        let mut low = vec![null().map_err(|error| failed("preparing", &error))?];
        while low.last().is_some_and(|fd| fd.as_raw_fd() <= 5) {
            low.push(null().map_err(|error| failed("preparing", &error))?);
        }
        sys::start_with_default_signals(&mut command);
        sys::start_with_descriptors(&mut command, [stdout, stderr, tells.as_raw_fd()]);
        let mut child = command.spawn().map_err(|error| failed("starting", &error))?;
        drop(tells);
        let started = || {
            let pid = i32::try_from(child.id()).unwrap_or(0);
            sys::pidfd_open(pid).map(|process| (pid, process)).map_err(|error| failed("watching", &error))
        };
        let result = started().and_then(|(pid, process)| {
            self.wait_ready(&ready, &mut child, &process)?;
            reporter.logger(pid, process.as_fd());
            Ok(())
        });
        if result.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        result
    }

    fn wait_ready(&self, ready: &OwnedFd, child: &mut Child, process: &OwnedFd) -> Result<(), Failure> {
        let path = self.command.path.display();
        if !wait_for(ready.as_raw_fd(), Instant::now() + READY_MAX) {
            let message = format!("the logger {path} was not ready within {} s", READY_MAX.as_secs());
            return Err(Failure::new(Code::DeadlineExceeded, message));
        }
        if rustix::io::read(ready, &mut [0_u8; 1]).is_ok_and(|count| count > 0) {
            return Ok(());
        }
        if self.command.says_ready {
            return Err(Failure::internal(format!("the logger {path} did not say that it is ready")));
        }
        // It has closed its end, which is enough. Or it has ended: a process gives up its descriptors first.
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten().count();
        if open == 0
            && wait_for(process.as_raw_fd(), Instant::now() + ENDING_MAX)
            && let Ok(Some(status)) = child.try_wait()
            && !status.success()
        {
            let message = format!("the logger {path} ended before it was ready: {status}");
            return Err(Failure::internal(message));
        }
        Ok(())
    }
}

/// Waits until loggers whose input has ended are done with it. One that takes too long is told to end, and then made to.
pub(crate) fn leave(loggers: &[OwnedFd]) {
    for (limit, signal) in [(REST_MAX, libc::SIGTERM), (FAREWELL, libc::SIGKILL)] {
        let deadline = Instant::now() + limit;
        for logger in loggers {
            if !wait_for(logger.as_raw_fd(), deadline) {
                let _ = sys::pidfd_signal(logger.as_fd(), signal);
            }
        }
    }
}

/// Whether there is something to read, or a process has ended, before the deadline.
fn wait_for(fd: RawFd, deadline: Instant) -> bool {
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
        let rest = i32::try_from(rest.as_millis()).unwrap_or(i32::MAX);
        match sys::poll(&mut fds, Some(rest)) {
            Ok(0) if rest > 0 => {}
            Ok(count) => return count > 0,
            Err(_) => return false,
        }
    }
}
