//! Attaching clients to the container.

use std::os::fd::{AsFd, OwnedFd};

use containerd_shim_protos::api;

use crate::say::say;
use crate::status::{Code, Failure};
use crate::stdio;

use super::Shim;
use super::container::{Phase, Reply};

/// Clients that may wait for the container to be created.
const EARLY_MAX: usize = 8;

impl Shim {
    /// Answers, and hands the caller's connection over to the audience. Who comes before the container is created is answered
    /// when it is: he misses nothing of what it prints.
    pub(super) fn attach(&mut self, reply: Reply, types: bool) -> Result<(), Failure> {
        if self.container.is_none() && !self.had_container {
            if self.early.len() >= EARLY_MAX {
                return Err(Failure::new(
                    Code::FailedPrecondition,
                    "too many clients wait for the container",
                ));
            }
            self.early.push((reply, types));
            return Ok(());
        }
        let running = self.container.as_ref().is_some_and(|container| container.exit().is_none());
        if !running {
            return Err(Failure::new(Code::FailedPrecondition, "the container is not running"));
        }
        if self.audience.borrow().full() {
            return Err(Failure::new(Code::FailedPrecondition, "too many clients are attached already"));
        }
        self.answer(reply, &api::Empty::default());
        let index = self.connections.iter().position(|connection| connection.id == reply.connection);
        if let Some(index) = index {
            let (socket, unsent) = self.connections.swap_remove(index).into_parts();
            self.drop_connection(reply.connection);
            self.audience.borrow_mut().admit(reply.connection, socket, unsent, types);
        }
        Ok(())
    }

    /// The container was created, or could not be: who waited to be attached is answered.
    pub(super) fn answer_early(&mut self) {
        for (reply, types) in std::mem::take(&mut self.early) {
            let attached = if self.container.is_some() {
                self.attach(reply, types)
            } else {
                Err(Failure::new(Code::FailedPrecondition, "the container could not be created"))
            };
            if let Err(failure) = attached {
                self.refuse(reply, &failure);
            }
        }
    }

    /// Attached clients type into the container's terminal when it has standard input.
    pub(super) fn attach_terminal(&mut self, master: &OwnedFd) {
        let wanted = self.container.as_ref().is_some_and(|container| stdio::is_attached(&container.stdin));
        if !wanted {
            return;
        }
        match rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 0) {
            Ok(keyboard) => self.audience.borrow_mut().set_keyboard(keyboard, false),
            Err(error) => say(format_args!("attaching a terminal: {error}")),
        }
    }

    /// Lets attached clients go when the container has ended and its output, too.
    pub(super) fn dismiss_audience(&mut self) {
        let ended = match &self.container {
            Some(container) => matches!(container.phase, Phase::Stopped(_)),
            None => self.had_container,
        };
        if ended && !self.streams.iter().any(|stream| stream.owner.is_empty()) {
            self.audience.borrow_mut().end();
        }
    }
}
