//! The services: one function a call. Errors carry the codes of `status::Code`.
//!
//! `berth.shim.v1.Shim` has the methods `ReopenLog`, `EndExecs`, `Attach` and `AttachInput`; their requests and answers are
//! `google.protobuf.Empty` (no bytes). After the answer to the latter two the connection is no ttrpc any more (see `audience`).

use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::topics::{
    TASK_EXEC_ADDED_EVENT_TOPIC, TASK_PAUSED_EVENT_TOPIC, TASK_RESUMED_EVENT_TOPIC,
};
use containerd_shim_protos::ttrpc::proto::{Request, Response, Status};

use crate::cgroup;
use crate::create::{self, Creation};
use crate::exec::{self, Execution};
use crate::job::{self, Job};
use crate::rootfs::RootfsMount;
use crate::status::{Code, Failure};
use crate::stdio::{self, Stdio};
use crate::stream::{Fifo, Sink};
use crate::sys;
use crate::{delete, metrics, update};

use super::container::{Exit, Phase, Process, Reply};
use super::jobs::{Purpose, Running, unsigned};
use super::{Shim, restore};

/// Execs at once.
const EXECS_MAX: usize = 1024;
/// How long a Kill of everything waits for everybody to be dead.
const KILL_WAIT: Duration = Duration::from_millis(50);

pub(super) type Outcome = Result<(), Failure>;

pub(super) fn parse<M: Message>(payload: &[u8]) -> Result<M, Failure> {
    M::parse_from_bytes(payload)
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("malformed request: {error}")))
}

pub(super) fn not_found(exec_id: &str) -> Failure {
    if exec_id.is_empty() {
        Failure::new(Code::NotFound, "the shim holds no container")
    } else {
        Failure::new(Code::NotFound, format!("no exec {exec_id}"))
    }
}

pub(super) fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Code::FailedPrecondition, message)
}

pub(super) fn time(nanoseconds: i64) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
        ..Default::default()
    })
}

impl Shim {
    pub(super) fn answer(
        &mut self,
        reply: Reply,
        message: &dyn containerd_shim_protos::protobuf::MessageDyn,
    ) {
        match message.write_to_bytes_dyn() {
            Ok(payload) => {
                let response = Response { payload, ..Default::default() };
                self.send(reply, &response.write_to_bytes().unwrap_or_default());
            }
            Err(error) => self.refuse(reply, &Failure::doing("encoding the answer", &error)),
        }
    }

    pub(super) fn refuse(&mut self, reply: Reply, failure: &Failure) {
        let mut status = Status::new();
        status.set_code(
            containerd_shim_protos::protobuf::Enum::from_i32(i32::from(failure.code as u8))
                .unwrap_or_default(),
        );
        status.message.clone_from(&failure.message);
        let response = Response { status: MessageField::some(status), ..Default::default() };
        self.send(reply, &response.write_to_bytes().unwrap_or_default());
    }

    pub(super) fn answer_wait(&mut self, reply: Reply, exit: Exit) {
        let exit_status = unsigned(exit.code);
        self.answer(
            reply,
            &api::WaitResponse { exit_status, exited_at: time(exit.at), ..Default::default() },
        );
    }

    pub(super) fn answer_delete(&mut self, reply: Reply, pid: i32, exit: Option<Exit>) {
        let mut response = api::DeleteResponse { pid: unsigned(pid), ..Default::default() };
        if let Some(exit) = exit {
            response.exit_status = unsigned(exit.code);
            response.exited_at = time(exit.at);
        }
        self.answer(reply, &response);
    }

    /// One request.
    pub(super) fn call(&mut self, reply: Reply, payload: &[u8]) {
        let outcome = parse::<Request>(payload).and_then(|request| match request.service.as_str() {
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                if self.foreign.is_some() {
                    self.forward(reply, &request.method, &request.payload)
                } else {
                    self.task_call(reply, &request.method, &request.payload)
                }
            }
            "berth.shim.v1.Shim" => match request.method.as_str() {
                "ReopenLog" => self.reopen_log(reply),
                "EndExecs" => self.end_execs(reply),
                "Attach" => self.attach(reply, false),
                "AttachInput" => self.attach(reply, true),
                method => Err(Failure::new(Code::Unimplemented, format!("no method {method}"))),
            },
            service => {
                Err(Failure::new(Code::Unimplemented, format!("no method {service}/{}", request.method)))
            }
        });
        if let Err(failure) = outcome {
            self.refuse(reply, &failure);
        }
    }

    fn task_call(&mut self, reply: Reply, method: &str, payload: &[u8]) -> Outcome {
        match method {
            "State" => self.state(reply, &parse(payload)?),
            "Create" => self.create(reply, parse(payload)?),
            "Start" => self.start(reply, &parse(payload)?),
            "Delete" => self.delete(reply, &parse(payload)?),
            "Pids" => self.pids(reply),
            "Pause" => self.freeze(reply, true),
            "Resume" => self.freeze(reply, false),
            "Kill" => self.kill(reply, &parse(payload)?),
            "Exec" => self.exec(reply, parse(payload)?),
            "ResizePty" => self.resize(reply, &parse(payload)?),
            "CloseIO" => self.close_io(reply, &parse(payload)?),
            "Update" => self.update(reply, &parse(payload)?),
            "Checkpoint" => self.checkpoint(reply, parse(payload)?),
            "Wait" => self.wait(reply, &parse(payload)?),
            "Connect" => self.connect(reply),
            "Stats" => self.stats(reply),
            "Shutdown" => self.shut_down(reply),
            _ => Err(Failure::new(Code::Unimplemented, format!("{method} is not implemented by this shim"))),
        }
    }

    fn create(&mut self, reply: Reply, request: api::CreateTaskRequest) -> Outcome {
        if self.container.is_some() || self.busy() {
            return Err(Failure::new(Code::AlreadyExists, "the shim holds a container already"));
        }
        if request.id != self.id {
            return Err(Failure::new(
                Code::InvalidArgument,
                format!("this shim is for {}, not {}", self.id, request.id),
            ));
        }
        let source = restore::source(&request, self.binary.is_some())?;
        self.tell_later(&request);
        self.forget_unread("");
        self.keep_open("", [&request.stdout, &request.stderr]);
        let mut stdio = Stdio::open(request.terminal, &request.stdin, &request.stdout, &request.stderr)?;
        if let Some((keyboard, once)) = stdio.keyboard.take() {
            self.audience.borrow_mut().set_keyboard(keyboard, once);
        }
        let process = Process::new(request.terminal, &request.stdin, &request.stdout, &request.stderr);
        let (purpose, [stdin, stdout, stderr]) = Self::purpose_of_create(process, stdio);
        let rootfs = request
            .rootfs
            .into_iter()
            .map(|mount| RootfsMount { kind: mount.type_, source: mount.source, options: mount.options })
            .collect();
        let creation = Creation {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            rootfs,
            terminal: request.terminal,
            stdin,
            stdout,
            stderr,
            seccomp_cache: self.seccomp_cache.clone(),
        };
        if let Some(source) = source {
            return self.create_later(reply, source, creation, purpose);
        }
        let keep = create::descriptors(&creation);
        let binary = self.binary.clone();
        let job = job::spawn(&keep, move |reporter| match binary {
            None => create::run(creation, reporter),
            Some(binary) => match binary.create(creation, reporter) {
                Ok(()) => reporter.done(),
                Err(failure) => reporter.failed(&failure),
            },
        })?;
        self.jobs.push(Running::new(job, purpose, reply));
        Ok(())
    }

    fn start(&mut self, reply: Reply, request: &api::StartRequest) -> Outcome {
        if !request.exec_id.is_empty() {
            return self.start_exec(reply, &request.exec_id);
        }
        let container = self.container.as_mut().ok_or_else(|| not_found(""))?;
        if !matches!(container.phase, Phase::Created) {
            return Err(refused("the container is not waiting for a start"));
        }
        if let Some(pending) = self.pending.take() {
            return self.restore(reply, pending);
        }
        let (id, bundle, binary) = (self.id.clone(), self.bundle.clone(), self.binary.clone());
        if binary.is_none()
            && create::start_at_once(&id, &bundle)
                .map_err(|error| Failure::doing("starting the container", &error))?
        {
            container.phase = Phase::Running;
            let pid = unsigned(container.pid);
            self.tell_started(pid);
            self.answer(reply, &api::StartResponse { pid, ..Default::default() });
            return Ok(());
        }
        let job = job::spawn(&[], move |reporter| match binary {
            None => create::start(&id, &bundle, reporter),
            Some(binary) => match binary.start(&id) {
                Ok(()) => reporter.done(),
                Err(failure) => reporter.failed(&failure),
            },
        })?;
        container.phase = Phase::Starting;
        self.jobs.push(Running::new(job, Purpose::Start, reply));
        Ok(())
    }

    fn exec(&mut self, reply: Reply, request: api::ExecProcessRequest) -> Outcome {
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if container.exit().is_some() {
            return Err(refused("the container is not running"));
        }
        if !crate::bundle::valid_id(&request.exec_id) {
            return Err(Failure::new(Code::InvalidArgument, format!("{:?} is no exec id", request.exec_id)));
        }
        if self.execs.contains_key(&request.exec_id) {
            return Err(Failure::new(
                Code::AlreadyExists,
                format!("there is an exec {} already", request.exec_id),
            ));
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(refused(format!("{EXECS_MAX} execs are under way")));
        }
        let mut process = Process::new(request.terminal, &request.stdin, &request.stdout, &request.stderr);
        process.spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        let exec_id = request.exec_id.clone();
        self.execs.insert(request.exec_id, process);
        self.answer(reply, &api::Empty::default());
        let event = TaskExecAdded { container_id: self.id.clone(), exec_id, ..Default::default() };
        self.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    fn start_exec(&mut self, reply: Reply, exec_id: &str) -> Outcome {
        let init = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if !matches!(init.phase, Phase::Running) {
            return Err(refused("the container is not running"));
        }
        let init = init.pid;
        if let Some((stdout, stderr)) =
            self.execs.get(exec_id).map(|exec| (exec.stdout.clone(), exec.stderr.clone()))
        {
            self.keep_open(exec_id, [&stdout, &stderr]);
        }
        let process = self.execs.get_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        if !matches!(process.phase, Phase::Created) {
            return Err(refused(format!("exec {exec_id} was started already")));
        }
        let (mut sink, mut own_stdin, mut handed) = (None, None, [None, None, None]);
        if !process.stdin.is_empty() {
            let (reader, writer) = stdio::open_stdin(&process.stdin)?;
            process.stdin_holder = Some(writer);
            if process.terminal { own_stdin = Some(reader) } else { handed[0] = Some(reader) }
        }
        if process.terminal {
            if !process.stdout.is_empty() {
                sink = Some(Sink::Fifo(Fifo::new(stdio::open_terminal_sink(&process.stdout)?)));
            }
        } else {
            for (path, slot) in [(&process.stdout, 1), (&process.stderr, 2)] {
                if !path.is_empty() {
                    handed[slot] = Some(stdio::open_direct(path)?);
                }
            }
        }
        let (terminal, spec) = (process.terminal, std::mem::take(&mut process.spec));
        let (id, bundle, binary, cgroups) = (&self.id, &self.bundle, &self.binary, &self.cgroups);
        let keep = create::raw(&handed);
        let execution =
            || Execution { exec_id, init, bundle, cgroups, spec: &spec, terminal, stdio: [None, None, None] };
        let warm = match (self.warm.take(), binary) {
            (Some(warm), None) => Job::of(warm.pid).map(|(job, channel)| {
                let execution = Execution { stdio: handed, ..execution() };
                match warm.send(&channel, &execution) {
                    Ok(()) => (Some(job), [None, None, None]),
                    Err(_) => {
                        warm.give_up();
                        (None, execution.stdio)
                    }
                }
            })?,
            _ => (None, handed),
        };
        let job = match warm {
            (Some(job), _) => job,
            (None, handed) => job::spawn(&keep, |reporter| match binary {
                None => exec::run(Execution { stdio: handed, ..execution() }, reporter),
                Some(binary) => match binary.exec(id, exec_id, &spec, terminal, handed, reporter) {
                    Ok(()) => reporter.done(),
                    Err(failure) => reporter.failed(&failure),
                },
            })?,
        };
        process.phase = Phase::Starting;
        let purpose = Purpose::Exec { exec_id: exec_id.to_owned(), terminal: sink, stdin: own_stdin };
        self.jobs.push(Running::new(job, purpose, reply));
        Ok(())
    }

    pub(super) fn wait(&mut self, reply: Reply, request: &api::WaitRequest) -> Outcome {
        let process = self.process_mut(&request.exec_id).ok_or_else(|| not_found(&request.exec_id))?;
        match process.exit() {
            Some(exit) => self.answer_wait(reply, exit),
            None => process.waiters.push(reply),
        }
        Ok(())
    }

    fn delete(&mut self, reply: Reply, request: &api::DeleteRequest) -> Outcome {
        let exec_id = request.exec_id.as_str();
        let process = self.process_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        if !exec_id.is_empty() {
            if matches!(process.phase, Phase::Starting | Phase::Running) {
                return Err(refused(format!("exec {exec_id} is running")));
            }
            if let Some(process) = self.forget_exec(exec_id) {
                self.tell_deleted(exec_id, process.pid, process.exit());
                self.answer_delete(reply, process.pid, process.exit());
            }
            return Ok(());
        }
        match process.phase {
            Phase::Starting | Phase::Running => return Err(refused("the container is running")),
            Phase::Created if process.pid > 0 => {
                let _ = sys::kill(process.pid, libc::SIGKILL);
            }
            Phase::Created => {}
            Phase::Stopped(_) => {}
        }
        if self.busy() {
            return Err(refused("another call on the container is under way"));
        }
        let names: Vec<String> = self.execs.keys().cloned().collect();
        for exec_id in names {
            self.forget_exec(&exec_id);
        }
        let (id, bundle, cgroups, binary) = (&self.id, &self.bundle, &self.cgroups, &self.binary);
        let job = job::spawn(&[], |reporter| delete::run(id, bundle, cgroups, binary.as_ref(), reporter))?;
        self.jobs.push(Running::new(job, Purpose::Delete, reply));
        Ok(())
    }

    fn kill(&mut self, reply: Reply, request: &api::KillRequest) -> Outcome {
        let signal = i32::try_from(request.signal).unwrap_or(-1);
        if !(0..=64).contains(&signal) {
            return Err(Failure::new(Code::InvalidArgument, format!("{} is no signal", request.signal)));
        }
        let exec_id = request.exec_id.as_str();
        let process = self.process_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        let (pid, ended) = (process.pid, process.exit().is_some());
        if exec_id.is_empty() && signal == libc::SIGKILL && self.pending.take().is_some() {
            self.ended("", sys::Reaped { pid: 0, code: 128 + signal, signal });
            self.answer(reply, &api::Empty::default());
            return Ok(());
        }
        if request.all {
            let directory = if exec_id.is_empty() {
                cgroup::for_killing(&self.cgroups).cloned()
            } else {
                exec::own_directory(&self.cgroups, exec_id)
            };
            if let Some(directory) = directory {
                cgroup::signal_all(&directory, signal, KILL_WAIT);
            }
        }
        if ended || pid == 0 {
            if !request.all {
                return Err(Failure::new(Code::NotFound, "the process is not running"));
            }
        } else if let Err(error) = sys::kill(pid, signal)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            return Err(Failure::doing(&format!("signalling process {pid}"), &error));
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    pub(super) fn state(&mut self, reply: Reply, request: &api::StateRequest) -> Outcome {
        let exec_id = request.exec_id.as_str();
        let (id, bundle, paused) = (self.id.clone(), self.bundle.display().to_string(), self.paused);
        let process = self.process_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        let status = match process.phase {
            Phase::Created | Phase::Starting => api::Status::CREATED,
            Phase::Running if paused => api::Status::PAUSED,
            Phase::Running => api::Status::RUNNING,
            Phase::Stopped(_) => api::Status::STOPPED,
        };
        let mut response = api::StateResponse {
            id,
            bundle,
            pid: unsigned(process.pid),
            status: status.into(),
            stdin: process.stdin.clone(),
            stdout: process.stdout.clone(),
            stderr: process.stderr.clone(),
            terminal: process.terminal,
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        if let Some(exit) = process.exit() {
            response.exit_status = unsigned(exit.code);
            response.exited_at = time(exit.at);
        }
        self.answer(reply, &response);
        Ok(())
    }

    fn pids(&mut self, reply: Reply) -> Outcome {
        self.container.as_ref().ok_or_else(|| not_found(""))?;
        let pids = cgroup::for_killing(&self.cgroups)
            .map(|directory| cgroup::processes(directory))
            .unwrap_or_default();
        let processes = pids
            .into_iter()
            .filter(|pid| self.warm.as_ref().is_none_or(|warm| warm.pid != *pid))
            .map(|pid| api::ProcessInfo { pid: unsigned(pid), ..Default::default() })
            .collect();
        self.answer(reply, &api::PidsResponse { processes, ..Default::default() });
        Ok(())
    }

    fn freeze(&mut self, reply: Reply, frozen: bool) -> Outcome {
        self.container.as_ref().ok_or_else(|| not_found(""))?;
        cgroup::freeze(&self.cgroups, frozen)
            .map_err(|error| Failure::doing("freezing the container", &error))?;
        self.paused = frozen;
        self.answer(reply, &api::Empty::default());
        let container_id = self.id.clone();
        if frozen {
            self.publish(TASK_PAUSED_EVENT_TOPIC, &TaskPaused { container_id, ..Default::default() });
        } else {
            self.publish(TASK_RESUMED_EVENT_TOPIC, &TaskResumed { container_id, ..Default::default() });
        }
        Ok(())
    }

    /// Figures of the container's cgroup.
    fn stats(&mut self, reply: Reply) -> Outcome {
        self.container.as_ref().ok_or_else(|| not_found(""))?;
        let stats = MessageField::some(metrics::read(&self.cgroups));
        self.answer(reply, &api::StatsResponse { stats, ..Default::default() });
        Ok(())
    }

    fn resize(&mut self, reply: Reply, request: &api::ResizePtyRequest) -> Outcome {
        let process = self.process_mut(&request.exec_id).ok_or_else(|| not_found(&request.exec_id))?;
        let master = process.master.as_ref().ok_or_else(|| refused("the process has no terminal"))?;
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        sys::resize_terminal(
            std::os::fd::AsRawFd::as_raw_fd(master),
            cells(request.height),
            cells(request.width),
        )
        .map_err(|error| Failure::doing("resizing the terminal", &error))?;
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    fn close_io(&mut self, reply: Reply, request: &api::CloseIORequest) -> Outcome {
        let process = self.process_mut(&request.exec_id).ok_or_else(|| not_found(&request.exec_id))?;
        if request.stdin {
            process.stdin_holder = None;
            if request.exec_id.is_empty() && !process.terminal {
                self.audience.borrow_mut().close_keyboard();
            }
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    fn update(&mut self, reply: Reply, request: &api::UpdateTaskRequest) -> Outcome {
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if container.exit().is_some() {
            return Err(refused("the container is not running"));
        }
        let resources = request.resources.as_ref().map(|any| any.value.clone()).unwrap_or_default();
        let (pid, cgroups) = (container.pid, self.cgroups.clone());
        let job = job::spawn(&[], |reporter| update::run(pid, &cgroups, &resources, reporter))?;
        self.jobs.push(Running::new(job, Purpose::Update, reply));
        Ok(())
    }

    pub(super) fn connect(&mut self, reply: Reply) -> Outcome {
        let task_pid = self.container.as_ref().map_or(0, |container| unsigned(container.pid));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let response =
            api::ConnectResponse { shim_pid: std::process::id(), task_pid, version, ..Default::default() };
        self.answer(reply, &response);
        Ok(())
    }

    /// Ends the shim, unless it still holds a container.
    fn shut_down(&mut self, reply: Reply) -> Outcome {
        self.shutdown = self.container.is_none() && self.jobs.is_empty();
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    /// Ends every exec with all it started, and forgets them: whoever asked for them is gone.
    fn end_execs(&mut self, reply: Reply) -> Outcome {
        let names: Vec<String> = self.execs.keys().cloned().collect();
        for exec_id in names {
            if let Some(directory) = exec::own_directory(&self.cgroups, &exec_id) {
                cgroup::signal_all(&directory, libc::SIGKILL, KILL_WAIT);
            }
            let Some(process) = self.execs.get_mut(&exec_id) else { continue };
            if matches!(process.phase, Phase::Starting | Phase::Running) {
                process.forsaken = true;
                if process.pid > 0 {
                    let _ = sys::kill(process.pid, libc::SIGKILL);
                }
            } else {
                self.forget_exec(&exec_id);
            }
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    fn reopen_log(&mut self, reply: Reply) -> Outcome {
        let mut seen: Vec<*const ()> = Vec::new();
        for log in self.streams.iter().filter_map(|stream| stream.log()) {
            let address = std::rc::Rc::as_ptr(log).cast();
            if !seen.contains(&address) {
                seen.push(address);
                log.borrow_mut().reopen().map_err(|error| Failure::doing("reopening the log", &error))?;
            }
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }
}
