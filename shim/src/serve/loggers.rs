//! Loggers of the container and its execs (see `logger`): children of the shim that end by themselves.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::job;
use crate::logger::{self, Logger};
use crate::status::Failure;
use crate::sys;

use super::Shim;
use super::container::Reply;
use super::jobs::{Purpose, Running};

/// How long the shim, when all else is done, stays for those that a failed creation has left.
const PATIENCE: Duration = Duration::from_secs(2);

impl Shim {
    /// Keeps one that a job has started.
    pub(super) fn keep_logger(&mut self, owner: String, pid: i32, process: OwnedFd) {
        // It may have ended, and have been seen to, before the job could say so.
        match self.strays.iter().position(|stray| stray.pid == pid) {
            Some(index) => drop(self.strays.remove(index)),
            None => self.loggers.push(Logger { owner, pid, process }),
        }
    }

    /// A child ended: whether it was a logger.
    pub(super) fn reaped_logger(&mut self, pid: i32) -> bool {
        let before = self.loggers.len();
        self.loggers.retain(|logger| logger.pid != pid);
        if self.loggers.is_empty() {
            self.loggers = Vec::new();
        }
        self.loggers.len() < before
    }

    /// Descriptors of an exec's loggers, for a job; of all where none is named.
    pub(super) fn loggers_of(&self, exec_id: Option<&str>) -> io::Result<Vec<OwnedFd>> {
        let wanted = self.loggers.iter().filter(|logger| exec_id.is_none_or(|id| logger.owner == id));
        wanted.map(|logger| logger.process.try_clone()).collect()
    }

    /// Has a job wait for an exec's logger; the exec is deleted then. `false` says that there is none.
    pub(super) fn delete_behind_logger(&mut self, reply: Reply, exec_id: &str) -> Result<bool, Failure> {
        let loggers = self.loggers_of(Some(exec_id)).unwrap_or_default();
        if loggers.is_empty() {
            return Ok(false);
        }
        // What the shim itself copies to it ends now.
        self.end_streams(exec_id);
        let keep: Vec<_> = loggers.iter().map(AsRawFd::as_raw_fd).collect();
        let job = job::spawn(&keep, move |reporter| {
            logger::leave(&loggers);
            reporter.done();
        })?;
        self.jobs.push(Running::new(job, Purpose::DeleteExec(exec_id.to_owned()), reply));
        Ok(true)
    }

    /// Whether the shim need not stay for them.
    pub(super) fn loggers_let_go(&mut self) -> bool {
        self.loggers.is_empty() || self.leaving_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
    }

    pub(super) fn loggers_deadline(&self) -> Option<Instant> {
        self.leaving_since.filter(|_| !self.loggers.is_empty()).map(|since| since + PATIENCE)
    }

    /// The shim ends: nobody would look after them any more.
    pub(super) fn end_loggers(&mut self) {
        for logger in std::mem::take(&mut self.loggers) {
            let _ = sys::pidfd_signal(logger.process.as_fd(), libc::SIGKILL);
        }
    }
}
