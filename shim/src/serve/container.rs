//! A process the shim watches: the container's first one, or an exec; and what is kept of its end.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cgroup;
use crate::numbers::unsigned;
use crate::say::say;
use crate::sys::Reaped;

use super::Shim;

/// How long the streams of an ended process are read on when others hold them open.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) connection: u64,
    pub(super) stream: u32,
}

impl Reply {
    /// Nobody asked: no connection has that number.
    pub(super) const NOBODY: Self = Self { connection: u64::MAX, stream: 0 };
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// Created, or an exec that was only announced.
    Created,
    /// A start is under way.
    Starting,
    Running,
    Stopped(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    /// The exit code, or 128 and the signal.
    pub(super) code: i32,
    pub(super) signal: i32,
    /// Nanoseconds since 1970.
    pub(super) at: i64,
}

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    /// 0 before there is one.
    pub(super) pid: i32,
    pub(super) phase: Phase,
    pub(super) terminal: bool,
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// The master side of its terminal.
    pub(super) master: Option<OwnedFd>,
    /// Keeps a stdin FIFO from ending until CloseIO.
    pub(super) stdin_holder: Option<OwnedFd>,
    /// An exec's OCI process as JSON, until it is started.
    pub(super) spec: Vec<u8>,
    /// Wait calls to answer.
    pub(super) waiters: Vec<Reply>,
    /// Nobody will ask for its end: it is forgotten then.
    pub(super) forsaken: bool,
}

impl Process {
    pub(super) fn new(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> Self {
        Self {
            pid: 0,
            phase: Phase::Created,
            terminal,
            stdin: stdin.to_owned(),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            master: None,
            stdin_holder: None,
            spec: Vec::new(),
            waiters: Vec::new(),
            forsaken: false,
        }
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }
}

impl Shim {
    /// The container's process, or the exec's when `exec_id` is not empty.
    pub(super) fn process_mut(&mut self, exec_id: &str) -> Option<&mut Process> {
        if exec_id.is_empty() { self.container.as_mut() } else { self.execs.get_mut(exec_id) }
    }

    /// A watched process ended: keep how, tell those who wait.
    pub(super) fn ended(&mut self, exec_id: &str, reaped: Reaped) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let exit =
            Exit { code: reaped.code, signal: reaped.signal, at: i64::try_from(at).unwrap_or(i64::MAX) };
        // What it wrote comes before its end; what others write into the same pipes does not delay it.
        let deadline = Instant::now() + DRAIN_MAX;
        for stream in self.streams.iter_mut().filter(|stream| stream.owner == exec_id) {
            stream.pump(16);
            stream.deadline = Some(deadline);
        }
        self.inputs.retain(|input| input.owner != exec_id);
        if exec_id.is_empty() {
            self.cool_down();
            self.audience.borrow_mut().close_keyboard();
            self.look_for_kills();
            let seen = self.kills.take().map_or(0, |mut kills| kills.look());
            let oom_killed = seen > 0 || cgroup::oom_kills(&self.cgroups) > 0;
            if oom_killed && !self.told_out_of_memory {
                self.tell_out_of_memory();
            }
            // A container that was found again may have ended before.
            let written = self.foreign.is_some() && self.bundle.join("exit.json").exists();
            if !written && let Err(error) = write_exit(&self.bundle, reaped.pid, exit, oom_killed) {
                say(format_args!("writing exit.json: {error}"));
            }
        }
        self.let_read(exec_id);
        if exec_id.is_empty() && self.is_starting() {
            // Its start is told when its hooks are done, which may be after its end; told the other way round, listeners take
            // it for running (moby, `daemon/monitor.go`).
            self.tell_started(unsigned(reaped.pid));
        }
        self.tell_ended(exec_id, reaped.pid, exit);
        let Some(process) = self.process_mut(exec_id) else { return };
        process.phase = Phase::Stopped(exit);
        process.stdin_holder = None;
        process.master = None;
        let forsaken = process.forsaken;
        for waiter in std::mem::take(&mut process.waiters) {
            self.answer_wait(waiter, exit);
        }
        if forsaken {
            self.forget_exec(exec_id);
        }
    }
}

/// `exit.json` in the bundle, whole or not at all.
fn write_exit(bundle: &Path, pid: i32, exit: Exit, oom_killed: bool) -> std::io::Result<()> {
    let text = format!(
        "{{\"pid\":{pid},\"exit_code\":{},\"signal\":{},\"exited_at_ns\":{},\"oom_killed\":{oom_killed}}}\n",
        exit.code, exit.signal, exit.at
    );
    let temporary = bundle.join("exit.json.tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(temporary, bundle.join("exit.json"))
}
