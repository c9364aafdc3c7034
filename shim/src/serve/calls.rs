//! The services: one function a call. Errors carry the codes of `status::Code`.
//!
//! `berth.shim.v1.Shim` has the methods `ReopenLog`, `EndExecs`, `Attach` and `AttachInput`; their requests and answers are
//! `google.protobuf.Empty` (no bytes). After the answer to the latter two the connection is no ttrpc any more (see `audience`).
//! `Timings` takes `Create` or `Start` as a `google.protobuf.StringValue`, and gives a JSON list in one (see `timing`).

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::wrappers::StringValue;
use containerd_shim_protos::topics::{TASK_PAUSED_EVENT_TOPIC, TASK_RESUMED_EVENT_TOPIC};
use containerd_shim_protos::ttrpc::proto::Request;

use crate::cgroup;
use crate::create::{self, Creation};
use crate::exec;
use crate::job::{self, Timing};
use crate::numbers::{time, unsigned};
use crate::rootfs::RootfsMount;
use crate::status::{Code, Failure};
use crate::stdio::Stdio;
use crate::sys;
use crate::timing::{self, Laps};
use crate::{metrics, update};

use super::answer::{Outcome, not_found, parse, refused};
use super::container::{Phase, Process, Reply};
use super::jobs::{Purpose, Running};
use super::{KILL_WAIT, Shim, restore};

impl Shim {
    /// One request.
    pub(super) fn call(&mut self, reply: Reply, payload: &[u8]) {
        let request = parse::<Request>(payload);
        let recorded = request.as_ref().is_ok_and(|request| timing::is_recorded(&request.metadata));
        self.traced = recorded.then(timing::now);
        let outcome = request.and_then(|request| match request.service.as_str() {
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
                "Timings" => self.tell_timings(reply, &parse(&request.payload)?),
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
        let source = restore::source(&request)?;
        self.tell_later(&request);
        self.forget_unread("");
        self.keep_open("", [&request.stdout, &request.stderr]);
        let mut stdio = Stdio::open(request.terminal, &request.stdin, &request.stdout, &request.stderr)?;
        if let Some((keyboard, once)) = stdio.keyboard.take() {
            self.audience.borrow_mut().set_keyboard(keyboard, once);
        }
        let feed = stdio.feed.take();
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
            feed,
            namespace: self.namespace.clone(),
            traced: self.traced,
        };
        if let Some(source) = source {
            return self.create_later(reply, source, creation, purpose);
        }
        let keep = create::descriptors(&creation);
        let binary = self.binary.clone();
        let job = job::spawn(&keep, move |reporter| {
            let mut creation = creation;
            if let Err(failure) = creation.start_logger(reporter) {
                return reporter.failed(&failure);
            }
            match binary {
                None => create::run(creation, reporter),
                Some(binary) => match binary.create(creation, reporter) {
                    Ok(()) => reporter.done(),
                    Err(failure) => reporter.failed(&failure),
                },
            }
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
            self.started_at_once();
            self.tell_started(pid);
            self.answer(reply, &api::StartResponse { pid, ..Default::default() });
            return Ok(());
        }
        let traced = self.traced;
        let job = job::spawn(&[], move |reporter| match binary {
            None => create::start(&id, &bundle, reporter),
            Some(binary) => match binary.start(&id) {
                Ok(()) => {
                    Laps::new(reporter, traced).lap("shim_runtime");
                    reporter.done();
                }
                Err(failure) => reporter.failed(&failure),
            },
        })?;
        container.phase = Phase::Starting;
        self.jobs.push(Running::new(job, Purpose::Start, reply));
        Ok(())
    }

    /// A start that took no process of its own.
    fn started_at_once(&mut self) {
        if let Some(start) = self.traced {
            self.timings.started.push(Timing { name: "shim_start".to_owned(), start, end: timing::now() });
        }
    }

    /// What took how long of the last call of that name; it is forgotten then.
    fn tell_timings(&mut self, reply: Reply, call: &StringValue) -> Outcome {
        let timings = match call.value.as_str() {
            "Create" => std::mem::take(&mut self.timings.created),
            "Start" => std::mem::take(&mut self.timings.started),
            _ => Vec::new(),
        };
        let value = serde_json::to_string(&timings).unwrap_or_default();
        self.answer(reply, &StringValue { value, ..Default::default() });
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
        let kills_container = exec_id.is_empty() && signal == libc::SIGKILL;
        if request.all && kills_container {
            cgroup::kill_all(&self.cgroups, KILL_WAIT);
        } else if request.all {
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
        if kills_container {
            cgroup::thaw_killed(&self.cgroups);
            self.paused = false;
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
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        let verb = if frozen { "paused" } else { "resumed" };
        if !matches!(container.phase, Phase::Running) {
            return Err(refused(format!("the container is not running: it can't be {verb}")));
        }
        if self.paused == frozen {
            let already = if frozen { "is paused already" } else { "is not paused" };
            return Err(refused(format!("the container {already}")));
        }
        if self.jobs.iter().any(|running| matches!(running.purpose, Purpose::Checkpoint)) {
            return Err(refused(format!("the container is being checkpointed: it can't be {verb}")));
        }
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
