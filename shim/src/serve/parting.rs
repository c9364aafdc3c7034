//! Another shim (see `forward`) that is asked to end, or for a container that nobody wants any more; and what it is asked before the
//! container's state is told.

use std::time::{Duration, Instant};

use containerd_shim_protos::api;

use crate::say::say;

use super::Shim;
use super::answer::Outcome;
use super::container::{Phase, Reply};
use super::peer::{Pending, encoded};

/// How long the other shim may take to say whether the container is paused.
const STATE_MAX: Duration = Duration::from_secs(2);

impl Shim {
    pub(super) fn forward_shutdown(&mut self, reply: Reply, payload: &[u8]) -> Outcome {
        let Some(foreign) = self.foreign.as_mut() else { return Ok(()) };
        if foreign.is_creating() {
            self.unwanted = true;
        } else {
            self.shutdown = self.container.is_none();
            // Whether there are other containers it knows itself. Ours may end before it answers.
            let _ = foreign.ask("Shutdown", payload.to_vec(), Pending::Ignored);
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }

    /// The container that was just created is not wanted any more: it is killed, and deleted when it has ended.
    pub(super) fn undo_behind(&mut self) {
        self.shutdown = true;
        let request = api::KillRequest {
            id: self.id.clone(),
            signal: libc::SIGKILL.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        if let (Some(foreign), Ok(payload)) = (self.foreign.as_mut(), encoded(&request)) {
            let _ = foreign.ask("Kill", payload, Pending::Undo);
        }
    }

    pub(super) fn delete_unwanted(&mut self) {
        let request = api::DeleteRequest { id: self.id.clone(), ..Default::default() };
        let deleted = encoded(&request).and_then(|payload| self.forward_delete(Reply::NOBODY, &payload));
        if let Err(failure) = deleted {
            say(format_args!("removing a container that nobody wants: {failure}"));
        }
    }

    /// Lets the other shim go, unless it holds other containers of the pod.
    pub(super) fn dismiss(&mut self) {
        let Some(foreign) = self.foreign.as_mut() else { return };
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        if let Ok(payload) = encoded(&request) {
            let _ = foreign.ask("Shutdown", payload, Pending::Ignored);
        }
    }

    /// Who paused the container may have been another than this shim's clients: the other shim knows.
    pub(super) fn forward_state(&mut self, reply: Reply, payload: &[u8]) -> Outcome {
        let runs = self.container.as_ref().is_some_and(|container| matches!(container.phase, Phase::Running));
        let pending = Pending::State(reply, Instant::now() + STATE_MAX);
        match self.foreign.as_mut().filter(|_| runs).map(|it| it.ask("State", payload.to_vec(), pending)) {
            Some(Ok(())) => Ok(()),
            _ => self.state(reply, &api::StateRequest::default()),
        }
    }

    /// Answers with what is known.
    pub(super) fn tell_state(&mut self, reply: Reply) {
        if let Err(failure) = self.state(reply, &api::StateRequest::default()) {
            self.refuse(reply, &failure);
        }
    }
}

/// Whether the other shim says so.
pub(super) fn is_paused(state: &api::StateResponse) -> bool {
    matches!(state.status.enum_value_or_default(), api::Status::PAUSED | api::Status::PAUSING)
}
