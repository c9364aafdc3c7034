//! Events for containerd, when the shim was started by it: what its Task service did, told to `Events.Forward` on containerd's
//! ttrpc socket (containerd, `api/services/ttrpc/events/v1/events.proto`).
//!
//! Nothing waits for containerd: events queue up, one is under way at a time, and one that could not be told in a few tries is
//! given up, as containerd's own shims do.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{CreateTaskRequest, ForwardRequest};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics::{
    TASK_CREATE_EVENT_TOPIC, TASK_DELETE_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC,
    TASK_OOM_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
};
use containerd_shim_protos::ttrpc::proto::Request;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::containerd;
use crate::frame::Connection;
use crate::numbers::{time, unsigned};
use crate::say::say;

use super::Shim;
use super::container::Exit;

/// Events that may wait, as in containerd's own shims.
const QUEUE_MAX: usize = 2048;
/// Tries for one event, and the time between them.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long the shim stays for the last events when all else is done.
const FAREWELL: Duration = Duration::from_secs(3);

/// The way to containerd.
#[derive(Debug)]
pub(super) struct Publisher {
    address: PathBuf,
    namespace: String,
    connection: Option<Connection>,
    queue: VecDeque<Vec<u8>>,
    stream: u32,
    under_way: bool,
    tries: u32,
    again_at: Option<Instant>,
    leaving_since: Option<Instant>,
    creation: TaskCreate,
}

impl Publisher {
    pub(super) fn new(address: PathBuf, namespace: String) -> Self {
        Self {
            address,
            namespace,
            connection: None,
            queue: VecDeque::new(),
            stream: 1,
            under_way: false,
            tries: 0,
            again_at: None,
            leaving_since: None,
            creation: TaskCreate::default(),
        }
    }

    fn push<M: MessageFull>(&mut self, topic: &str, event: &M) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(0),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
            ..Default::default()
        };
        let event = Any {
            type_url: M::descriptor().full_name().to_owned(),
            value: event.write_to_bytes().unwrap_or_default(),
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        };
        let forward = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let request = Request {
            service: "containerd.services.events.ttrpc.v1.Events".to_owned(),
            method: "Forward".to_owned(),
            payload: forward.write_to_bytes().unwrap_or_default(),
            ..Default::default()
        };
        if self.queue.len() >= QUEUE_MAX {
            say("containerd takes no events: one is dropped");
            // The one under way is told already; its place on the connection is not another's.
            self.queue.remove(usize::from(self.under_way));
        }
        self.queue.push_back(request.write_to_bytes().unwrap_or_default());
        self.send();
    }

    fn send(&mut self) {
        if self.under_way || self.again_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.again_at = None;
        let Some(event) = self.queue.front() else { return };
        let sent = match &mut self.connection {
            Some(connection) => connection.ask(self.stream, event),
            None => open(&self.address).and_then(|mut connection| {
                self.stream = 1;
                let sent = connection.ask(self.stream, event);
                self.connection = Some(connection);
                sent
            }),
        };
        match sent {
            Ok(()) => self.under_way = true,
            Err(error) => self.lost(&error),
        }
    }

    fn lost(&mut self, error: &io::Error) {
        self.connection = None;
        self.under_way = false;
        self.tries += 1;
        if self.tries >= TRIES {
            say(format_args!("telling containerd of an event: {error}: it is given up"));
            self.next();
        } else if !self.queue.is_empty() {
            self.again_at = Some(Instant::now() + PAUSE);
        }
    }

    fn next(&mut self) {
        self.queue.pop_front();
        self.tries = 0;
        self.under_way = false;
        self.stream = self.stream.wrapping_add(2);
    }

    /// Something came from containerd.
    fn serve(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let flushed = connection.flush();
        match flushed.and_then(|()| connection.read()) {
            Ok(frames) => {
                if self.under_way && frames.iter().any(|frame| frame.is_answer && frame.stream == self.stream)
                {
                    self.next();
                    self.send();
                }
            }
            // An idle connection may end at any time; the next event opens another.
            Err(_) if !self.under_way => self.connection = None,
            Err(error) => self.lost(&error),
        }
    }

    pub(super) fn interest(&self) -> Option<(RawFd, i16)> {
        let connection = self.connection.as_ref()?;
        let write = if connection.wants_write() { libc::POLLOUT } else { 0 };
        Some((connection.fd(), libc::POLLIN | write))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let leaving = self.leaving_since.map(|since| since + FAREWELL);
        self.again_at.into_iter().chain(leaving).min()
    }

    /// The shim does not end, though it was about to.
    pub(super) fn stays(&mut self) {
        self.leaving_since = None;
    }

    /// Whether the shim may end: all is told, or it has waited long enough.
    pub(super) fn lets_go(&mut self) -> bool {
        if self.queue.is_empty() {
            return true;
        }
        self.leaving_since.get_or_insert_with(Instant::now).elapsed() >= FAREWELL
    }
}

/// Connects without waiting.
fn open(address: &PathBuf) -> io::Result<Connection> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(address)?)?;
    Connection::new(0, UnixStream::from(socket))
}

impl Shim {
    /// Keeps of a creation what its event says.
    pub(super) fn tell_later(&mut self, request: &CreateTaskRequest) {
        let Some(publisher) = &mut self.publisher else { return };
        publisher.creation = TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            }),
            ..Default::default()
        };
    }

    /// The container is there; keeps its cgroup for whoever has to clean up after this process.
    pub(super) fn tell_created(&mut self, pid: i32) {
        let Some(publisher) = &mut self.publisher else { return };
        if let Err(error) = containerd::keep_cgroups(&self.bundle, &self.cgroups) {
            say(format_args!("keeping where the cgroup is: {error}"));
        }
        let mut event = std::mem::take(&mut publisher.creation);
        event.pid = unsigned(pid);
        self.publish(TASK_CREATE_EVENT_TOPIC, &event);
    }

    pub(super) fn tell_started(&mut self, pid: u32) {
        let container_id = self.id.clone();
        self.publish(TASK_START_EVENT_TOPIC, &TaskStart { container_id, pid, ..Default::default() });
    }

    pub(super) fn tell_exec_started(&mut self, exec_id: &str, pid: i32) {
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let event = TaskExecStarted { container_id, exec_id, pid: unsigned(pid), ..Default::default() };
        self.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
    }

    pub(super) fn tell_out_of_memory(&mut self) {
        self.told_out_of_memory = true;
        let container_id = self.id.clone();
        self.publish(TASK_OOM_EVENT_TOPIC, &TaskOOM { container_id, ..Default::default() });
    }

    /// `exec_id` is empty for the container itself, whose id the event then has twice.
    pub(super) fn tell_ended(&mut self, exec_id: &str, pid: i32, exit: Exit) {
        let id = if exec_id.is_empty() { self.id.clone() } else { exec_id.to_owned() };
        let event = TaskExit {
            container_id: self.id.clone(),
            id,
            pid: unsigned(pid),
            exit_status: unsigned(exit.code),
            exited_at: time(exit.at),
            ..Default::default()
        };
        self.publish(TASK_EXIT_EVENT_TOPIC, &event);
    }

    pub(super) fn tell_deleted(&mut self, exec_id: &str, pid: i32, exit: Option<Exit>) {
        let mut event = TaskDelete {
            container_id: self.id.clone(),
            id: exec_id.to_owned(),
            pid: unsigned(pid),
            ..Default::default()
        };
        if let Some(exit) = exit {
            event.exit_status = unsigned(exit.code);
            event.exited_at = time(exit.at);
        }
        self.publish(TASK_DELETE_EVENT_TOPIC, &event);
    }

    /// Tells containerd of an event, if it is containerd that the shim works for.
    pub(super) fn publish<M: MessageFull>(&mut self, topic: &str, event: &M) {
        if let Some(publisher) = &mut self.publisher {
            publisher.push(topic, event);
        }
    }

    pub(super) fn serve_publisher(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.serve();
        }
    }

    /// What is due whenever something has happened.
    pub(super) fn look_after_publisher(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.send();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn events_wait_for_containerd_and_come_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.ttrpc");
        let mut publisher = Publisher::new(path.clone(), "moby".to_owned());
        let event = |pid| TaskStart { container_id: "c".to_owned(), pid, ..Default::default() };
        publisher.push(TASK_START_EVENT_TOPIC, &event(1));
        publisher.push(TASK_START_EVENT_TOPIC, &event(2));
        assert_eq!(publisher.queue.len(), 2);
        let listener = UnixListener::bind(&path).unwrap();
        publisher.again_at = None;
        publisher.send();
        let (socket, _) = listener.accept().unwrap();
        let mut server = Connection::new(1, socket).unwrap();
        for pid in 1..=2 {
            let frames = loop {
                let frames = server.read();
                match frames {
                    Ok(frames) if frames.is_empty() => std::thread::sleep(Duration::from_millis(5)),
                    other => break other.unwrap(),
                }
            };
            let request = Request::parse_from_bytes(&frames[0].payload).unwrap();
            let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
            assert_eq!(
                (forward.envelope.namespace.as_str(), forward.envelope.topic.as_str()),
                ("moby", "/tasks/start")
            );
            assert_eq!(forward.envelope.event.type_url, "containerd.events.TaskStart");
            assert_eq!(TaskStart::parse_from_bytes(&forward.envelope.event.value).unwrap().pid, pid);
            server.send(frames[0].stream, &[]).unwrap();
            publisher.serve();
        }
        assert!(publisher.lets_go());
    }

    #[test]
    fn an_event_that_is_dropped_is_not_the_one_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.ttrpc");
        let listener = UnixListener::bind(&path).unwrap();
        let mut publisher = Publisher::new(path, "moby".to_owned());
        let event = |pid| TaskStart { container_id: "c".to_owned(), pid, ..Default::default() };
        for pid in 0..=u32::try_from(QUEUE_MAX).unwrap() {
            publisher.push(TASK_START_EVENT_TOPIC, &event(pid));
        }
        assert_eq!(publisher.queue.len(), QUEUE_MAX);
        // It is said once.
        let mut server = Connection::new(1, listener.accept().unwrap().0).unwrap();
        let frames = server.read().unwrap();
        assert_eq!(frames.len(), 1);
        server.send(frames[0].stream, &[]).unwrap();
        publisher.serve();
        let frames = server.read().unwrap();
        let request = Request::parse_from_bytes(&frames[0].payload).unwrap();
        let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
        // The second one is what there was no room for.
        assert_eq!(TaskStart::parse_from_bytes(&forward.envelope.event.value).unwrap().pid, 2);
    }

    #[test]
    fn what_nobody_takes_is_given_up() {
        let mut publisher = Publisher::new("/nonexistent/socket".into(), "n".to_owned());
        publisher.push(TASK_START_EVENT_TOPIC, &TaskStart::default());
        for _ in 1..TRIES {
            assert_eq!(publisher.queue.len(), 1);
            publisher.again_at = None;
            publisher.send();
        }
        assert!(publisher.queue.is_empty() && publisher.lets_go());
    }
}
