//! The end: Delete and Shutdown.

use std::os::fd::AsRawFd;

use containerd_shim_protos::api;

use crate::cgroup;
use crate::delete;
use crate::job;
use crate::say::say;
use crate::sys::{self, Reaped};

use super::answer::{Outcome, not_found, refused};
use super::container::{Phase, Process, Reply};
use super::jobs::{Purpose, Running};
use super::{KILL_WAIT, Shim};

impl Shim {
    pub(super) fn delete(&mut self, reply: Reply, request: &api::DeleteRequest) -> Outcome {
        let exec_id = request.exec_id.as_str();
        let process = self.process_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        if !exec_id.is_empty() {
            if matches!(process.phase, Phase::Starting | Phase::Running) {
                return Err(refused(format!("exec {exec_id} is running")));
            }
            if !self.delete_behind_logger(reply, exec_id)? {
                self.exec_deleted(reply, exec_id);
            }
            return Ok(());
        }
        let (phase, pid) = (process.phase, process.pid);
        if matches!(phase, Phase::Starting | Phase::Running) {
            return Err(refused("the container is running"));
        }
        if self.busy() {
            return Err(refused("another call on the container is under way"));
        }
        // From here on it is not refused any more.
        if matches!(phase, Phase::Created) && pid > 0 {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        self.end_execs_with_container();
        self.free(reply)
    }

    /// The exec has ended, and who wrote its output down as well.
    pub(super) fn exec_deleted(&mut self, reply: Reply, exec_id: &str) {
        match self.forget_exec(exec_id) {
            Some(process) => {
                self.tell_deleted(exec_id, process.pid, process.exit());
                self.answer_delete(reply, process.pid, process.exit());
            }
            None => self.refuse(reply, &not_found(exec_id)),
        }
    }

    /// Has a job remove all that the container has, and wait for its loggers.
    fn free(&mut self, reply: Reply) -> Outcome {
        let loggers = self.loggers_of(None).unwrap_or_default();
        if !loggers.is_empty() {
            // A terminal's output the shim itself copies to them.
            self.end_streams("");
        }
        let keep: Vec<_> = loggers.iter().map(AsRawFd::as_raw_fd).collect();
        let (id, bundle, cgroups, binary) = (&self.id, &self.bundle, &self.cgroups, &self.binary);
        let job = job::spawn(&keep, |reporter| {
            delete::run(id, bundle, cgroups, binary.as_ref(), &loggers, reporter);
        })?;
        self.jobs.push(Running::new(job, Purpose::Delete, reply));
        Ok(())
    }

    /// The container that was just created is not wanted any more: it goes, and the shim with it.
    pub(super) fn undo_creation(&mut self) {
        self.shutdown = true;
        if let Some(container) = self.container.as_ref().filter(|container| container.exit().is_none())
            && container.pid > 0
        {
            let _ = sys::kill(container.pid, libc::SIGKILL);
        }
        if let Err(failure) = self.free(Reply::NOBODY) {
            say(format_args!("removing a container that nobody wants: {failure}"));
        }
    }

    /// The container has ended and is deleted. Where it had no PID namespace of its own its execs are still there: they end as
    /// well, and whoever waits for them is told.
    fn end_execs_with_container(&mut self) {
        let runs = |process: &Process| matches!(process.phase, Phase::Starting | Phase::Running);
        if self.execs.values().any(runs) {
            cgroup::kill_all(&self.cgroups, KILL_WAIT);
            self.reap_ended();
        }
        let names: Vec<String> = self.execs.keys().cloned().collect();
        for exec_id in names {
            if let Some(process) = self.execs.get(&exec_id).filter(|process| runs(process)) {
                let pid = process.pid;
                if pid > 0 {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
                self.ended(&exec_id, Reaped { pid, code: 128 + libc::SIGKILL, signal: libc::SIGKILL });
            }
            self.forget_exec(&exec_id);
        }
    }

    /// Ends the shim, unless it still holds a container. One that is just being created is removed as soon as it is there: whoever
    /// asked for it has gone, and may not come back.
    pub(super) fn shut_down(&mut self, reply: Reply) -> Outcome {
        if self.container.is_none() {
            let creating = |running: &Running| matches!(running.purpose, Purpose::Create { .. });
            self.unwanted = self.jobs.iter().any(creating);
            self.shutdown = !self.unwanted;
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }
}
