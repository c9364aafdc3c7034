//! Clients: they come, ask, are answered, and go.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::frame::Connection;
use crate::say::say;

use super::container::Reply;
use super::{CONNECTIONS_MAX, Shim};

/// A client that can't be let in for want of descriptors or memory is tried again after this time.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

impl Shim {
    pub(super) fn accept(&mut self, listener: &UnixListener) {
        while self.connections.len() < CONNECTIONS_MAX {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => return self.refuse_client(&error),
            };
            match Connection::new(self.next_connection, socket) {
                Ok(connection) => self.connections.push(connection),
                Err(error) => say(format_args!("accepting a client: {error}")),
            }
            self.next_connection += 1;
        }
    }

    /// Nobody else waits there, or nobody can be let in now: then the socket stays ready, and is left alone for a while.
    fn refuse_client(&mut self, error: &std::io::Error) {
        use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) {
            return;
        }
        self.closed_until = Some(Instant::now() + ACCEPT_AGAIN);
        if !std::mem::replace(&mut self.told_closed, true) {
            say(format_args!("accepting a client: {error}: trying again until it can be done"));
        }
    }

    pub(super) fn serve_connection(&mut self, id: u64) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        let flushed = connection.flush();
        let frames = flushed.and_then(|()| connection.read());
        match frames {
            Ok(frames) => {
                for frame in frames.into_iter().filter(|frame| !frame.is_answer) {
                    let reply = Reply { connection: id, stream: frame.stream };
                    self.call(reply, &frame.payload);
                }
            }
            Err(error) => {
                if error.kind() != std::io::ErrorKind::UnexpectedEof {
                    say(format_args!("dropping a client: {error}"));
                }
                self.drop_connection(id);
            }
        }
    }

    pub(super) fn drop_connection(&mut self, id: u64) {
        self.connections.retain(|connection| connection.id != id);
        self.container.iter_mut().chain(self.execs.values_mut()).for_each(|process| {
            process.waiters.retain(|waiter| waiter.connection != id);
        });
        if self.connections.is_empty() {
            self.lonely_since = Instant::now();
            self.heap_dirty = true;
        }
    }

    /// Sends an encoded `Response`.
    pub(super) fn send(&mut self, reply: Reply, response: &[u8]) {
        let Some(connection) =
            self.connections.iter_mut().find(|connection| connection.id == reply.connection)
        else {
            return;
        };
        if let Err(error) = connection.send(reply.stream, response) {
            say(format_args!("dropping a client: {error}"));
            self.drop_connection(reply.connection);
        }
    }
}
