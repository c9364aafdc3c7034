//! Calls passed on to another shim (see `foreign`), and what comes back.
//!
//! What concerns the container's own streams, log, attached clients and end is this shim's business; everything else goes
//! through as it is. Execs are the other shim's alone: it opens their FIFOs itself.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::proto::Response;

use crate::cgroup;
use crate::foreign::{self, Bootstrap};
use crate::numbers::unsigned;
use crate::say::say;
use crate::status::{Code, Failure};
use crate::stream::{Sink, Stream};
use crate::sys::Reaped;

use super::Shim;
use super::answer::{self, Outcome, not_found, parse, refused};
use super::container::{Phase, Process, Reply};
use super::parting::is_paused;
use super::peer::{Creating, Pending, Streams, encoded, is_ours, keep, kept, refusal};

/// The shim of a pod may end just when another container of the pod comes to it: how often a creation begins anew.
const ATTEMPTS: u32 = 3;
/// After the container's end, how long its last output may take to come through the other shim.
const TAIL_MAX: Duration = Duration::from_secs(2);
/// The exit code of a container that was killed, or lost with its shim.
const KILLED: i32 = 128 + libc::SIGKILL;

fn passed(sent: Result<(), (Failure, Pending)>) -> Outcome {
    sent.map_err(|(failure, _)| failure)
}

impl Shim {
    /// One call of the Task service.
    pub(super) fn forward(&mut self, reply: Reply, method: &str, payload: &[u8]) -> Outcome {
        match method {
            "Create" => return self.forward_create(reply, parse(payload)?),
            "Connect" => return self.connect(reply),
            "Shutdown" => return self.forward_shutdown(reply, payload),
            _ => {}
        }
        // Every other request begins with the ids of container and exec, or is for the container alone.
        let ids = match method {
            "Update" | "Checkpoint" => api::StateRequest::default(),
            _ => parse(payload)?,
        };
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        let (phase, terminal) = (container.phase, container.terminal);
        let own = ids.exec_id.is_empty();
        match method {
            "State" if own => return self.forward_state(reply, payload),
            "Wait" if own => return self.wait(reply, &parse(payload)?),
            "Delete" if own => return self.forward_delete(reply, payload),
            "CloseIO" if own && !terminal => self.audience.borrow_mut().close_keyboard(),
            "Kill" if own && matches!(phase, Phase::Stopped(_)) => {
                if !parse::<api::KillRequest>(payload)?.all {
                    return Err(Failure::new(Code::NotFound, "the process is not running"));
                }
                self.answer(reply, &api::Empty::default());
                return Ok(());
            }
            _ => {}
        }
        let pending = match method {
            "Start" if own => {
                if !matches!(phase, Phase::Created) {
                    return Err(refused("the container is not waiting for a start"));
                }
                Pending::Start(reply)
            }
            "Pause" | "Resume" => Pending::Freeze(reply, method == "Pause"),
            _ => Pending::Through(reply),
        };
        let Some(foreign) = self.foreign.as_mut() else { return Err(not_found("")) };
        passed(foreign.ask(method, payload.to_vec(), pending))?;
        if let Some(container) = self.container.as_mut()
            && method == "Start"
            && own
        {
            container.phase = Phase::Starting;
        }
        Ok(())
    }

    fn forward_create(&mut self, reply: Reply, request: api::CreateTaskRequest) -> Outcome {
        let Some(foreign) = self.foreign.as_mut() else { return Err(not_found("")) };
        if self.container.is_some() || foreign.is_creating() {
            return Err(Failure::new(Code::AlreadyExists, "the shim holds a container already"));
        }
        if request.id != self.id {
            let message = format!("this shim is for {}, not {}", self.id, request.id);
            return Err(Failure::new(Code::InvalidArgument, message));
        }
        let streams = Streams {
            terminal: request.terminal,
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let copies = foreign.open(&self.bundle, &streams, &self.audience)?;
        keep(&self.bundle, &streams)?;
        let process = Process::new(request.terminal, &streams.stdin, &streams.stdout, &streams.stderr);
        let path = |name: &str, wanted: &str| match wanted {
            "" => String::new(),
            other if is_ours(other) => foreign::fifo_directory(&self.bundle).join(name).display().to_string(),
            other => other.to_owned(),
        };
        let mut request = request;
        request.stdin = path("stdin", &streams.stdin);
        request.stdout = path("stdout", &streams.stdout);
        request.stderr = if streams.terminal { String::new() } else { path("stderr", &streams.stderr) };
        request.options = foreign.program.config.as_deref().map(options).into();
        let creating = Creating { reply, request, process, copies, attempt: 1 };
        self.create_behind(Box::new(creating))
    }

    /// Has the other shim create the container, starting it first.
    fn create_behind(&mut self, creating: Box<Creating>) -> Outcome {
        let Some(foreign) = self.foreign.as_mut() else { return Err(not_found("")) };
        let mut attempt = creating.attempt;
        loop {
            let bootstrap = foreign.program.start(&self.id, &self.bundle)?;
            match foreign.connect(&bootstrap) {
                Ok(()) => break,
                Err(failure) if attempt >= ATTEMPTS => return Err(failure),
                Err(_) => attempt += 1,
            }
        }
        let payload = encoded(&creating.request)?;
        passed(foreign.ask("Create", payload, Pending::Create(creating)))
    }

    pub(super) fn forward_delete(&mut self, reply: Reply, payload: &[u8]) -> Outcome {
        let Some(foreign) = self.foreign.as_mut() else { return Err(not_found("")) };
        if foreign.peer.is_some() {
            return passed(foreign.ask("Delete", payload.to_vec(), Pending::Delete(reply)));
        }
        // Nobody is there who could: the program itself frees what is left.
        if let Err(failure) = foreign.program.delete(&self.id, &self.bundle) {
            say(format_args!("freeing what the shim left: {failure}"));
        }
        let _ = nix::mount::umount2(&self.bundle.join("rootfs"), nix::mount::MntFlags::MNT_DETACH);
        let deadline = Instant::now() + TAIL_MAX;
        for directory in std::mem::take(&mut self.cgroups) {
            if let Err(error) = cgroup::remove(&directory, deadline) {
                say(format_args!("removing {}: {error}", directory.display()));
            }
        }
        self.end_streams("");
        foreign::forget(&self.bundle);
        let container = self.container.take();
        let (pid, exit) = container.as_ref().map_or((0, None), |process| (process.pid, process.exit()));
        self.answer_delete(reply, pid, exit);
        Ok(())
    }

    /// Something came from the other shim.
    pub(super) fn serve_peer(&mut self) {
        let Some(peer) = self.foreign.as_mut().and_then(|foreign| foreign.peer.as_mut()) else { return };
        let flushed = peer.connection.flush();
        let frames = match flushed.and_then(|()| peer.connection.read()) {
            Ok(frames) => frames,
            Err(_) => return self.lose_peer(),
        };
        for frame in frames.into_iter().filter(|frame| frame.is_answer) {
            let pending = self.foreign.as_mut().and_then(|foreign| foreign.pending.remove(&frame.stream));
            let Some(pending) = pending else { continue };
            match Response::parse_from_bytes(&frame.payload) {
                Ok(response) => self.answered(pending, response, &frame.payload),
                Err(error) => {
                    let failure = Failure::internal(format!("a malformed answer of the shim: {error}"));
                    say(&failure);
                    let response = answer::refusal(&failure);
                    self.answered(pending, response.clone(), &response.write_to_bytes().unwrap_or_default());
                }
            }
        }
        self.heap_dirty = true;
    }

    /// `whole` is the encoded response.
    fn answered(&mut self, pending: Pending, response: Response, whole: &[u8]) {
        let refusal = refusal(&response);
        match pending {
            Pending::Create(creating) => match refusal {
                Some(failure) => {
                    self.shutdown |= self.unwanted;
                    self.refuse(creating.reply, &failure);
                    foreign::forget(&self.bundle);
                    self.dismiss();
                }
                None => {
                    self.created(*creating, &response);
                    if self.unwanted {
                        self.undo_behind();
                    }
                }
            },
            Pending::Start(reply) => {
                if let Some(foreign) = self.foreign.as_mut() {
                    foreign.held = Vec::new();
                }
                if let Some(container) = self.container.as_mut()
                    && matches!(container.phase, Phase::Starting)
                {
                    container.phase = if refusal.is_some() { Phase::Created } else { Phase::Running };
                }
                self.send(reply, whole);
            }
            Pending::Wait => match api::WaitResponse::parse_from_bytes(&response.payload) {
                Ok(answer) if refusal.is_none() => self.tail_begins(&answer),
                _ => {
                    say(format_args!("the shim can't wait for the container: {refusal:?}"));
                    // Then it is over, and how it ended is lost.
                    if refusal.is_some_and(|failure| failure.code == Code::NotFound) {
                        let exit_status = unsigned(KILLED);
                        self.tail_begins(&api::WaitResponse { exit_status, ..Default::default() });
                    }
                }
            },
            Pending::Delete(reply) => {
                let refusal = refusal.filter(|failure| failure.code != Code::NotFound);
                if let Some(failure) = &refusal {
                    if reply.connection == Reply::NOBODY.connection {
                        // Nobody would try again: the program frees what it can.
                        say(format_args!("the shim keeps a container that nobody wants: {failure}"));
                        self.lose_peer();
                    }
                } else {
                    self.end_tail();
                    self.end_streams("");
                    self.container = None;
                    self.cgroups.clear();
                    foreign::forget(&self.bundle);
                    self.dismiss();
                }
                self.send(reply, whole);
            }
            Pending::Through(reply) => self.send(reply, whole),
            Pending::Freeze(reply, frozen) => {
                if refusal.is_none() {
                    self.paused = frozen;
                }
                self.send(reply, whole);
            }
            Pending::State(reply, _) => {
                if let (None, Ok(state)) = (refusal, api::StateResponse::parse_from_bytes(&response.payload))
                {
                    self.paused = is_paused(&state);
                }
                self.tell_state(reply);
            }
            Pending::Undo => {
                if refusal.is_some() {
                    self.delete_unwanted();
                }
            }
            Pending::Ignored => {}
        }
    }

    fn created(&mut self, creating: Creating, response: &Response) {
        let pid = api::CreateTaskResponse::parse_from_bytes(&response.payload).map_or(0, |answer| answer.pid);
        let Creating { reply, mut process, copies, .. } = creating;
        process.pid = i32::try_from(pid).unwrap_or(0);
        self.hold(process, copies);
        self.answer(reply, &api::CreateTaskResponse { pid, ..Default::default() });
    }

    /// Takes charge of a container that the other shim has.
    fn hold(&mut self, process: Process, copies: Vec<(OwnedFd, Sink)>) {
        if let Ok(own) = cgroup::own_membership() {
            self.settle_in(cgroup::directories_of(process.pid, &own).unwrap_or_default());
        }
        self.had_container = true;
        self.container = Some(process);
        for (source, sink) in copies {
            self.streams.push(Stream::new("", source, sink).shown_to(&self.audience));
        }
        let request = api::WaitRequest { id: self.id.clone(), ..Default::default() };
        if let (Some(foreign), Ok(payload)) = (self.foreign.as_mut(), encoded(&request)) {
            let _ = foreign.ask("Wait", payload, Pending::Wait);
        }
    }

    /// The container has ended; it is told when what it wrote has come, too.
    fn tail_begins(&mut self, answer: &api::WaitResponse) {
        let Some(pid) = self.container.as_ref().map(|container| container.pid) else { return };
        let code = i32::try_from(answer.exit_status).unwrap_or(KILLED);
        let signal = if (129..=192).contains(&code) { code - 128 } else { 0 };
        if let Some(foreign) = self.foreign.as_mut() {
            foreign.held = Vec::new();
            foreign.tail = Some((Reaped { pid, code, signal }, Instant::now() + TAIL_MAX));
        }
        self.look_after_peer();
    }

    fn end_tail(&mut self) {
        let Some((reaped, _)) = self.foreign.as_mut().and_then(|foreign| foreign.tail.take()) else { return };
        if self.container.as_ref().is_some_and(|container| container.exit().is_none()) {
            self.ended("", reaped);
        }
    }

    /// What is due whenever something has happened.
    pub(super) fn look_after_peer(&mut self) {
        let Some(foreign) = self.foreign.as_mut() else { return };
        for reply in foreign.impatient(Instant::now()) {
            self.tell_state(reply);
        }
        let ended = self.container.as_ref().is_some_and(|container| container.exit().is_some());
        let Some(foreign) = self.foreign.as_mut() else { return };
        if self.unwanted && ended && !foreign.is_deleting() {
            return self.delete_unwanted();
        }
        let over = foreign.tail.is_some_and(|(_, deadline)| {
            deadline <= Instant::now() || !self.streams.iter().any(|stream| stream.owner.is_empty())
        });
        // The first client's input has ended, and with it the container's.
        if foreign.keyboard && !self.audience.borrow().has_keyboard() {
            foreign.keyboard = false;
            let request = api::CloseIORequest { id: self.id.clone(), stdin: true, ..Default::default() };
            if let Ok(payload) = encoded(&request) {
                let _ = foreign.ask("CloseIO", payload, Pending::Ignored);
            }
        }
        if over {
            self.end_tail();
        }
    }

    /// The connection to the other shim is over: it has ended.
    fn lose_peer(&mut self) {
        let Some(foreign) = self.foreign.as_mut() else { return };
        foreign.peer = None;
        foreign.held = Vec::new();
        let lost = format!("the shim {} ended", foreign.program.path.display());
        let pending = std::mem::take(&mut foreign.pending);
        for (_, pending) in pending {
            match pending {
                Pending::Create(mut creating) if creating.attempt < ATTEMPTS && !self.unwanted => {
                    creating.attempt += 1;
                    let reply = creating.reply;
                    if let Err(failure) = self.create_behind(creating) {
                        self.refuse(reply, &failure);
                    }
                }
                Pending::Create(creating) => {
                    self.shutdown |= self.unwanted;
                    self.refuse(creating.reply, &Failure::internal(lost.clone()));
                }
                Pending::Delete(reply) => {
                    if let Err(failure) = self.forward_delete(reply, &[]) {
                        self.refuse(reply, &failure);
                    }
                }
                Pending::Start(reply) | Pending::Through(reply) | Pending::Freeze(reply, _) => {
                    self.refuse(reply, &Failure::internal(lost.clone()));
                }
                Pending::State(reply, _) => self.tell_state(reply),
                Pending::Wait | Pending::Undo | Pending::Ignored => {}
            }
        }
        self.end_tail();
        let Some(pid) = self.container.as_ref().filter(|one| one.exit().is_none()).map(|one| one.pid) else {
            return;
        };
        say(format_args!("{lost} before its container: the container is killed"));
        cgroup::kill_all(&self.cgroups, TAIL_MAX);
        self.ended("", Reaped { pid, code: KILLED, signal: libc::SIGKILL });
    }

    /// Finds the container again that an earlier process of this shim has created.
    pub(super) fn adopt(&mut self) -> Result<(), Failure> {
        let (Some(foreign), Some(bootstrap)) = (self.foreign.as_mut(), Bootstrap::load(&self.bundle)) else {
            return Ok(());
        };
        let Some(streams) = kept(&self.bundle) else { return Ok(()) };
        let mut process = Process::new(streams.terminal, &streams.stdin, &streams.stdout, &streams.stderr);
        if let Err(failure) = foreign.connect(&bootstrap) {
            say(&failure);
            self.had_container = true;
            self.container = Some(process);
            self.lose_peer();
            return Ok(());
        }
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        passed(foreign.ask("State", encoded(&request)?, Pending::Ignored))?;
        let response = foreign.answer()?;
        match refusal(&response) {
            Some(failure) if failure.code == Code::NotFound => {
                foreign::forget(&self.bundle);
                self.dismiss();
                return Ok(());
            }
            Some(failure) => return Err(failure),
            None => {}
        }
        let state: api::StateResponse = parse(&response.payload)?;
        let copies = foreign.open(&self.bundle, &streams, &self.audience)?;
        process.pid = i32::try_from(state.pid).unwrap_or(0);
        process.phase = match state.status.enum_value_or_default() {
            api::Status::CREATED => Phase::Created,
            // If it has ended, Wait says how.
            _ => Phase::Running,
        };
        if !matches!(process.phase, Phase::Created) {
            foreign.held = Vec::new();
        }
        self.paused = is_paused(&state);
        self.hold(process, copies);
        Ok(())
    }
}

/// What a shim that takes a configuration file is told with Create (containerd, `runtimeoptions.v1.Options`: field 2 is
/// `config_path`).
fn options(config: &str) -> Any {
    let mut value = vec![2 << 3 | 2];
    let mut length = config.len();
    while length >= 0x80 {
        value.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    value.push(u8::try_from(length).unwrap_or(0));
    value.extend_from_slice(config.as_bytes());
    Any { type_url: "runtimeoptions.v1.Options".to_owned(), value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_configuration_file_is_told_as_containerd_tells_it() {
        let any = options("/etc/x.toml");
        assert_eq!(any.value, [&[0x12, 11][..], b"/etc/x.toml"].concat());
        let long = "p".repeat(300);
        let any = options(&long);
        assert_eq!(any.value[..3], [0x12, 0xac, 0x02]);
        assert_eq!(any.value.len(), 303);
    }
}
