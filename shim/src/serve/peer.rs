//! The other shim as this one knows it (see `foreign`): the connection to it, what is asked of it, the streams between them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use containerd_shim_protos::ttrpc::proto::{Request, Response};
use serde::{Deserialize, Serialize};

use crate::audience::Audience;
use crate::foreign::{self, Bootstrap, Program};
use crate::frame::Connection;
use crate::status::{Code, Failure};
use crate::stdio::{self, Stdio};
use crate::stream::Sink;
use crate::sys::{self, Reaped};

use super::answer::{not_found, parse};
use super::container::{Process, Reply};

/// How long the other shim may take to say how its container is, when it is found again.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The other shim, as this one knows it.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) program: Program,
    pub(super) peer: Option<Peer>,
    pub(super) pending: BTreeMap<u32, Pending>,
    /// Ends of FIFOs that stay open until the other shim surely has opened its own.
    pub(super) held: Vec<OwnedFd>,
    /// Whether attached clients can type.
    pub(super) keyboard: bool,
    /// How the container ended, while its last output is on its way.
    pub(super) tail: Option<(Reaped, Instant)>,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: Connection,
    service: &'static str,
    next: u32,
}

/// What an answer of the other shim is for.
#[derive(Debug)]
pub(super) enum Pending {
    Create(Box<Creating>),
    Start(Reply),
    Wait,
    Delete(Reply),
    /// Whether the container is paused: somebody wants its state, and is told what is known if no answer comes by then.
    State(Reply, Instant),
    /// Pause or Resume.
    Freeze(Reply, bool),
    /// The end of a container that nobody wants.
    Undo,
    /// A call that is passed on as it is.
    Through(Reply),
    /// Nobody waits for it.
    Ignored,
}

#[derive(Debug)]
pub(super) struct Creating {
    pub(super) reply: Reply,
    pub(super) request: api::CreateTaskRequest,
    pub(super) process: Process,
    pub(super) copies: Vec<(OwnedFd, Sink)>,
    pub(super) attempt: u32,
}

/// What a later process of this shim has to know of the container's streams: `io/streams.json`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Streams {
    pub(super) terminal: bool,
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Foreign {
    pub(super) fn new(program: Program) -> Self {
        Self { program, peer: None, pending: BTreeMap::new(), held: Vec::new(), keyboard: false, tail: None }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Option<(RawFd, i16)> {
        let connection = &self.peer.as_ref()?.connection;
        let write = if connection.wants_write() { libc::POLLOUT } else { 0 };
        Some((connection.fd(), libc::POLLIN | write))
    }

    /// Whether the other shim is just creating the container.
    pub(super) fn is_creating(&self) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Create(_)))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let states = self.pending.values().filter_map(|pending| match pending {
            Pending::State(_, until) => Some(*until),
            _ => None,
        });
        states.chain(self.tail.map(|(_, deadline)| deadline)).min()
    }

    /// Takes out whom the other shim has kept waiting for the container's state.
    pub(super) fn impatient(&mut self, now: Instant) -> Vec<Reply> {
        let mut replies = Vec::new();
        self.pending.retain(|_, pending| match pending {
            Pending::State(reply, until) if *until <= now => {
                replies.push(*reply);
                false
            }
            _ => true,
        });
        replies
    }

    /// Whether the container is just being deleted.
    pub(super) fn is_deleting(&self) -> bool {
        self.pending.values().any(|pending| matches!(pending, Pending::Delete(_)))
    }

    /// Connects to it.
    pub(super) fn connect(&mut self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        let connection = Connection::new(0, bootstrap.connect()?)
            .map_err(|error| Failure::doing("preparing the connection to the shim", &error))?;
        self.peer = Some(Peer { connection, service: bootstrap.service(), next: 1 });
        Ok(())
    }

    /// Sends a call; the answer comes to `pending`.
    pub(super) fn ask(
        &mut self,
        method: &str,
        payload: Vec<u8>,
        pending: Pending,
    ) -> Result<(), (Failure, Pending)> {
        let Some(peer) = self.peer.as_mut() else {
            let message = format!("the shim {} is gone", self.program.path.display());
            return Err((Failure::new(Code::FailedPrecondition, message), pending));
        };
        let request = Request {
            service: peer.service.to_owned(),
            method: method.to_owned(),
            payload,
            ..Default::default()
        };
        let stream = peer.next;
        // Clients' streams are odd.
        peer.next = peer.next.wrapping_add(2);
        match peer.connection.ask(stream, &request.write_to_bytes().unwrap_or_default()) {
            Ok(()) => {
                self.pending.insert(stream, pending);
                Ok(())
            }
            Err(error) => Err((Failure::doing(&format!("calling {method} of the shim"), &error), pending)),
        }
    }

    /// Opens the FIFOs, and what is at this end of them.
    pub(super) fn open(
        &mut self,
        bundle: &Path,
        streams: &Streams,
        audience: &RefCell<Audience>,
    ) -> Result<Vec<(OwnedFd, Sink)>, Failure> {
        // A terminal's output comes through the first FIFO alone.
        let ours = |path: &str| if is_ours(path) { path.to_owned() } else { String::new() };
        let stderr = if streams.terminal { String::new() } else { ours(&streams.stderr) };
        let stdio =
            Stdio::open_with(false, &ours(&streams.stdin), &ours(&streams.stdout), &stderr, |name| {
                foreign::fifo(bundle, name)
            })?;
        let Stdio { stdin, stdout, stderr, copies, keyboard, .. } = stdio;
        self.held = [stdin, stdout, stderr].into_iter().flatten().collect();
        self.keyboard = keyboard.is_some();
        if let Some((keyboard, once)) = keyboard {
            audience.borrow_mut().set_keyboard(keyboard, once);
        }
        Ok(copies)
    }

    /// Waits for the only answer that is under way.
    pub(super) fn answer(&mut self) -> Result<Response, Failure> {
        let lost = |error: &io::Error| Failure::doing("asking the shim for the container", error);
        let deadline = Instant::now() + ANSWER_MAX;
        self.pending.clear();
        loop {
            let Some(peer) = self.peer.as_mut() else { return Err(not_found("")) };
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(lost(&io::ErrorKind::TimedOut.into()));
            }
            let mut fds = [libc::pollfd { fd: peer.connection.fd(), events: libc::POLLIN, revents: 0 }];
            let rest = i32::try_from(rest.as_millis()).unwrap_or(i32::MAX);
            sys::poll(&mut fds, Some(rest)).map_err(|error| lost(&error))?;
            let frames = peer.connection.read().map_err(|error| lost(&error))?;
            if let Some(frame) = frames.into_iter().find(|frame| frame.is_answer) {
                return parse(&frame.payload);
            }
        }
    }
}

pub(super) fn encoded(message: &impl Message) -> Result<Vec<u8>, Failure> {
    message.write_to_bytes().map_err(|error| Failure::doing("encoding a request", &error))
}

/// The refusal in an answer, if it is one.
pub(super) fn refusal(response: &Response) -> Option<Failure> {
    let status = response.status.as_ref().filter(|status| status.code.value() != 0)?;
    let code = u8::try_from(EnumOrUnknown::value(&status.code)).map_or(Code::Internal, Code::from_byte);
    Some(match code {
        Code::Internal => Failure::said(status.message.clone()),
        code => Failure::new(code, status.message.clone()),
    })
}

/// Whether this shim is at the other end of a stream; otherwise it is a FIFO for the other shim to open.
pub(super) fn is_ours(path: &str) -> bool {
    stdio::is_attached(path) || path.starts_with(stdio::LOG_SCHEME)
}

/// Keeps it for a later process of this shim.
pub(super) fn keep(bundle: &Path, streams: &Streams) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let directory = foreign::fifo_directory(bundle);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("streams.json"), serde_json::to_vec(streams)?)
    };
    write().map_err(|error| Failure::doing("keeping what is known of the streams", &error))
}

/// What an earlier process of this shim kept.
pub(super) fn kept(bundle: &Path) -> Option<Streams> {
    let bytes = fs::read(foreign::fifo_directory(bundle).join("streams.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn refusals_keep_their_code() {
        let mut response = Response::default();
        assert!(refusal(&response).is_none());
        response
            .status
            .mut_or_insert_default()
            .set_code(containerd_shim_protos::protobuf::Enum::from_i32(5).unwrap());
        assert_eq!(refusal(&response).unwrap().code, Code::NotFound);
    }
}
