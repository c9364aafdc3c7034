//! Jobs under way, their results, and the children that end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use containerd_shim_protos::api;
use rustix::io::Errno;

use crate::cgroup;
use crate::exec;
use crate::job::{Job, Report, Timing};
use crate::numbers::unsigned;
use crate::say::say;
use crate::status::{Code, Failure};
use crate::stdio::Stdio;
use crate::stream::{Input, Sink, Stream};
use crate::sys::{self, Reaped};
use crate::timing::PARTS_MAX;

use super::Shim;
use super::answer::refused;
use super::container::{Phase, Process, Reply};

/// Ended children that nobody claimed yet.
const STRAYS_MAX: usize = 64;

/// What a job is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Create {
        process: Process,
        copies: Vec<(OwnedFd, Sink)>,
        terminal: Option<Sink>,
        stdin: Option<OwnedFd>,
    },
    Start,
    Exec {
        exec_id: String,
        copies: Vec<(OwnedFd, Sink)>,
        terminal: Option<Sink>,
        stdin: Option<OwnedFd>,
    },
    Delete,
    /// The exec has ended; its logger has not.
    DeleteExec(String),
    Update,
    Checkpoint,
    Restore {
        copies: Vec<(OwnedFd, Sink)>,
        terminal: Option<Sink>,
        stdin: Option<OwnedFd>,
    },
}

/// A job and what it has reported so far.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) job: Job,
    pub(super) purpose: Purpose,
    pub(super) reply: Reply,
    pub(super) stream_ended: bool,
    ended: Option<Reaped>,
    pid: i32,
    cgroups: Vec<PathBuf>,
    master: Option<OwnedFd>,
    timings: Vec<Timing>,
}

impl Running {
    pub(super) fn new(job: Job, purpose: Purpose, reply: Reply) -> Self {
        Self {
            job,
            purpose,
            reply,
            stream_ended: false,
            ended: None,
            pid: 0,
            cgroups: Vec::new(),
            master: None,
            timings: Vec::new(),
        }
    }
}

impl Shim {
    /// Whether a job that changes the container is under way.
    pub(super) fn busy(&self) -> bool {
        let of_execs =
            |running: &Running| matches!(running.purpose, Purpose::Exec { .. } | Purpose::DeleteExec(_));
        self.jobs.iter().any(|running| !of_execs(running))
    }

    /// Whether a start of the created container is under way.
    pub(super) fn is_starting(&self) -> bool {
        self.jobs.iter().any(|running| matches!(running.purpose, Purpose::Start))
    }

    pub(super) fn read_job(&mut self, job_pid: i32) {
        let Some(index) = self.jobs.iter().position(|running| running.job.pid == job_pid) else { return };
        let Some(running) = self.jobs.get_mut(index) else { return };
        let (reports, ended) = running.job.read();
        running.stream_ended |= ended;
        let (mut result, mut logger) = (None, None);
        for report in reports {
            match report {
                Report::Pid(pid) => running.pid = pid,
                Report::Cgroup(directory) => running.cgroups.push(PathBuf::from(directory)),
                Report::Terminal(master) => running.master = Some(master),
                Report::Logger(pid, process) => {
                    let owner = match &running.purpose {
                        Purpose::Exec { exec_id, .. } => exec_id.clone(),
                        _ => String::new(),
                    };
                    logger = Some((owner, pid, process));
                }
                Report::Took(timing) if running.timings.len() < PARTS_MAX => running.timings.push(timing),
                Report::Took(_) => {}
                Report::Done => result = result.or(Some(Ok(()))),
                Report::Failed(failure) => result = result.or(Some(Err(failure))),
            }
        }
        if result.is_none() {
            let is_exec = matches!(running.purpose, Purpose::Exec { .. });
            let ended = running.ended.filter(|_| !is_exec || running.stream_ended);
            result = match (is_exec && running.stream_ended && running.pid > 0, ended) {
                // The command's image took over and closed the channel.
                (true, _) => Some(Ok(())),
                (false, Some(ended)) => {
                    let message = format!("the helper process ended with status {}", ended.code);
                    Some(Err(running.job.clearest(Failure::internal(message))))
                }
                (false, None) => None,
            };
        }
        if let Some((owner, pid, process)) = logger {
            self.keep_logger(owner, pid, process);
        }
        if let Some(result) = result {
            let running = self.jobs.remove(index);
            self.finish(running, result);
            self.heap_dirty = true;
        }
    }

    fn finish(&mut self, running: Running, result: Result<(), Failure>) {
        let Running { purpose, reply, pid, cgroups, master, ended, job, timings, .. } = running;
        match purpose {
            Purpose::Create { .. } => self.timings.created.extend(timings),
            Purpose::Start => self.timings.started.extend(timings),
            _ => {}
        }
        match purpose {
            Purpose::Create { process, copies, terminal, stdin } => {
                if let Err(failure) = result {
                    self.shutdown |= self.unwanted;
                    self.refuse(reply, &failure);
                    return self.answer_early();
                }
                self.settle_in(cgroups);
                self.had_container = true;
                let mut process = process;
                process.pid = pid;
                for (source, sink) in copies {
                    self.streams.push(Stream::new("", source, sink).shown_to(&self.audience));
                }
                self.container = Some(process);
                self.connect_terminal("", master, terminal, stdin);
                self.tell_created(pid);
                self.answer(reply, &api::CreateTaskResponse { pid: unsigned(pid), ..Default::default() });
                self.answer_early();
                self.claim_stray("", pid);
                // A creator that has not ended yet still is the parent of the container's process; both end up with us.
                let _ = (ended, job);
                if self.unwanted {
                    self.undo_creation();
                }
            }
            Purpose::Start => {
                let Some(container) = self.container.as_mut() else { return };
                match result {
                    Ok(()) => {
                        let pid = unsigned(container.pid);
                        // If it has ended meanwhile, that was told before its end.
                        if matches!(container.phase, Phase::Starting) {
                            container.phase = Phase::Running;
                            self.tell_started(pid);
                        }
                        self.answer(reply, &api::StartResponse { pid, ..Default::default() });
                    }
                    Err(failure) => {
                        if matches!(container.phase, Phase::Starting) {
                            container.phase = Phase::Created;
                        }
                        self.refuse(reply, &failure);
                    }
                }
            }
            Purpose::Exec { exec_id, copies, terminal, stdin } => {
                let Some(process) = self.execs.get_mut(&exec_id) else {
                    // What it came to has been killed with all that is in the container's cgroup.
                    return self.refuse(reply, &refused("the container was deleted meanwhile"));
                };
                match result {
                    Ok(()) => {
                        process.pid = pid;
                        process.phase = Phase::Running;
                        if process.forsaken {
                            let _ = sys::kill(pid, libc::SIGKILL);
                        }
                        for (source, sink) in copies {
                            self.streams.push(Stream::new(&exec_id, source, sink));
                        }
                        self.connect_terminal(&exec_id, master, terminal, stdin);
                        self.tell_exec_started(&exec_id, pid);
                        self.answer(reply, &api::StartResponse { pid: unsigned(pid), ..Default::default() });
                        self.claim_stray(&exec_id, pid);
                    }
                    Err(failure) => {
                        let code = if failure.code == Code::NotFound { 127 } else { 126 };
                        self.refuse(reply, &failure);
                        self.ended(&exec_id, Reaped { pid, code, signal: 0 });
                    }
                }
            }
            Purpose::Delete => {
                let Some(container) = self.container.take() else { return };
                match result {
                    Ok(()) => {
                        self.cgroups.clear();
                        self.end_streams("");
                        self.forget_unread("");
                        self.tell_deleted("", container.pid, container.exit());
                        self.answer_delete(reply, container.pid, container.exit());
                    }
                    Err(failure) => {
                        self.container = Some(container);
                        self.refuse(reply, &failure);
                    }
                }
            }
            Purpose::DeleteExec(exec_id) => self.exec_deleted(reply, &exec_id),
            Purpose::Update => match result {
                Ok(()) => self.answer(reply, &api::Empty::default()),
                Err(failure) => self.refuse(reply, &failure),
            },
            Purpose::Restore { copies, terminal, stdin } => {
                if let Err(failure) = result {
                    self.ended("", Reaped { pid: 0, code: 128, signal: 0 });
                    return self.refuse(reply, &failure);
                }
                self.settle_in(cgroups);
                for (source, sink) in copies {
                    self.streams.push(Stream::new("", source, sink).shown_to(&self.audience));
                }
                if let Some(container) = self.container.as_mut() {
                    container.pid = pid;
                    container.phase = Phase::Running;
                }
                self.connect_terminal("", master, terminal, stdin);
                self.tell_started(unsigned(pid));
                self.answer(reply, &api::StartResponse { pid: unsigned(pid), ..Default::default() });
                self.claim_stray("", pid);
            }
            Purpose::Checkpoint => self.checkpointed(reply, result),
        }
    }

    /// Puts the streams of a terminal together.
    fn connect_terminal(
        &mut self,
        owner: &str,
        master: Option<OwnedFd>,
        sink: Option<Sink>,
        stdin: Option<OwnedFd>,
    ) {
        let Some(master) = master else { return };
        let connect = || -> Result<(OwnedFd, OwnedFd), Errno> {
            rustix::io::ioctl_fionbio(master.as_fd(), true)?;
            Ok((
                rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 0)?,
                rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 0)?,
            ))
        };
        match connect() {
            Ok((output, input)) => {
                if let Some(sink) = sink {
                    let stream = Stream::new(owner, output, sink);
                    self.streams.push(if owner.is_empty() {
                        stream.shown_to(&self.audience)
                    } else {
                        stream
                    });
                }
                if let Some(stdin) = stdin {
                    let _ = rustix::io::ioctl_fionbio(stdin.as_fd(), true);
                    self.inputs.push(Input::new(owner, stdin, input));
                }
            }
            Err(error) => say(format_args!("connecting a terminal: {error}")),
        }
        if owner.is_empty() {
            self.attach_terminal(&master);
        }
        if let Some(process) = self.process_mut(owner) {
            process.master = Some(master);
        }
    }

    /// The process may have ended before its creation was reported.
    fn claim_stray(&mut self, exec_id: &str, pid: i32) {
        if let Some(index) = self.strays.iter().position(|stray| stray.pid == pid) {
            let stray = self.strays.remove(index);
            self.ended(exec_id, stray);
        }
    }

    /// Reads what is left of a process' streams and closes them.
    pub(super) fn end_streams(&mut self, owner: &str) {
        let (mine, others) =
            std::mem::take(&mut self.streams).into_iter().partition(|stream| stream.owner == owner);
        self.streams = others;
        for mut stream in mine {
            stream.pump(64);
            stream.finish();
        }
        self.inputs.retain(|input| input.owner != owner);
    }

    /// Some child ended.
    pub(super) fn reap(&mut self, signals: &OwnedFd) {
        let mut buffer = [0_u8; 512];
        while rustix::io::read(signals, &mut buffer).is_ok_and(|count| count > 0) {}
        self.reap_ended();
    }

    /// Takes note of all children that have ended by now.
    pub(super) fn reap_ended(&mut self) {
        while let Some(reaped) = sys::reap() {
            if self
                .container
                .as_ref()
                .is_some_and(|container| container.pid == reaped.pid && container.exit().is_none())
            {
                self.ended("", reaped);
                continue;
            }
            let exec = self.execs.iter().find(|(_, exec)| exec.pid == reaped.pid && exec.exit().is_none());
            if let Some(exec_id) = exec.map(|(exec_id, _)| exec_id.clone()) {
                self.ended(&exec_id, reaped);
                continue;
            }
            if let Some(running) = self.jobs.iter_mut().find(|running| running.job.pid == reaped.pid) {
                running.ended = Some(reaped);
                self.read_job(reaped.pid);
                continue;
            }
            if self.warm.as_ref().is_some_and(|warm| warm.pid == reaped.pid) {
                self.warm = None;
                continue;
            }
            if self.reaped_logger(reaped.pid) {
                continue;
            }
            if !self.jobs.is_empty() {
                if self.strays.len() >= STRAYS_MAX {
                    self.strays.remove(0);
                }
                self.strays.push(reaped);
            }
        }
        if self.jobs.is_empty() {
            self.strays = Vec::new();
        }
    }

    /// Removes an exec and what it holds. Whom it left in the background lives on as a process of the container: who wants
    /// all of it to end kills all of it before.
    pub(super) fn forget_exec(&mut self, exec_id: &str) -> Option<Process> {
        let process = self.execs.remove(exec_id)?;
        self.forget_unread(exec_id);
        self.end_streams(exec_id);
        let container = cgroup::for_killing(&self.cgroups);
        if let (Some(directory), Some(container)) = (exec::own_directory(&self.cgroups, exec_id), container) {
            if !cgroup::move_all(&directory, container) {
                cgroup::signal_all(&directory, libc::SIGKILL, std::time::Duration::from_millis(20));
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_millis(50);
            if let Err(error) = cgroup::remove(&directory, deadline) {
                say(format_args!("removing {}: {error}", directory.display()));
            }
        }
        self.heap_dirty = true;
        self.warm_up();
        Some(process)
    }

    /// What the shim does with opened standard streams besides handing them on.
    pub(super) fn purpose_of_create(process: Process, stdio: Stdio) -> (Purpose, [Option<OwnedFd>; 3]) {
        let Stdio { stdin, stdout, stderr, stdin_holder, copies, terminal, keyboard: _, feed: _ } = stdio;
        let mut process = process;
        process.stdin_holder = stdin_holder;
        let (own, handed) = if process.terminal { (stdin, None) } else { (None, stdin) };
        (Purpose::Create { process, copies, terminal, stdin: own }, [handed, stdout, stderr])
    }
}
