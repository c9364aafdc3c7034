//! Requests and jobs of the pod as a whole.

use std::sync::Arc;
use std::time::Duration;

use super::containers::answer_all;
use super::lifecycle::tell_pod;
use super::{Done, Phase, Task};
use crate::container::{self, spec};
use crate::pod::error::Error;
use crate::pod::event::EventKind;
use crate::pod::init;
use crate::pod::lifecycle::PodStep;
use crate::pod::request::Reply;
use crate::pod::sandbox;
use crate::pod::slot::Slot;
use crate::proto::berth::v1::{ContainerPhase, PodPhase};

/// How long the pod's end waits for containers that are being made.
const CREATION_LIMIT: Duration = Duration::from_secs(3);

impl Task {
    /// Notices the end of what all containers of a ready pod live by, where there is such a thing.
    pub(super) fn watch_sandbox(&mut self) {
        if self.phase != Phase::Ready {
            return;
        }
        let tools = Arc::clone(&self.shared.tools);
        let id = self.record.id.clone();
        if spec::shares_pid(&self.config) {
            let (pid, pin) = (self.record.init_pid, self.surroundings.pid.clone().unwrap_or_default());
            self.job(async move {
                init::ended(pid, pin).await;
                Done::SandboxEnded
            });
        }
        if self.surroundings.handler.sandbox {
            self.job(async move {
                container::sandbox::ended(&tools, &id).await;
                Done::SandboxEnded
            });
        }
    }

    /// No container can be made in it any more: whoever asked for the pod makes another when this one is not ready.
    pub(super) fn sandbox_ended(&mut self) {
        self.lost = true;
        if self.phase == Phase::Ready {
            tracing::warn!(
                pod = self.record.id,
                "what the pod's containers live by has ended: it is stopped"
            );
            self.begin_stop();
        }
    }

    pub(super) fn stop_pod(&mut self, reply: Reply<()>) {
        let runs = |slot: &Slot| slot.phase() == ContainerPhase::ContainerRunning;
        if self.phase == Phase::NotReady && !self.left && !self.containers.values().any(runs) {
            let _ = reply.send(Ok(()));
            return;
        }
        self.stop_replies.push(reply);
        self.begin_stop();
    }

    pub(super) fn remove_pod(&mut self, reply: Reply<()>) {
        self.remove_replies.push(reply);
        if self.phase == Phase::NotReady {
            self.wait_for_creations();
        }
        if self.phase == Phase::Ready {
            // CRI: a sandbox that still runs is stopped by force.
            self.begin_stop();
        }
        self.advance();
    }

    fn begin_stop(&mut self) {
        if self.phase == Phase::Stopping || self.pod_busy {
            return;
        }
        self.lost |= self.phase == Phase::NotReady;
        self.phase = Phase::Stopping;
        self.publish();
        let running: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, slot)| slot.phase() == ContainerPhase::ContainerRunning)
            .map(|(id, _)| id.clone())
            .collect();
        for id in running {
            self.kill(&id);
        }
        self.wait_for_creations();
        self.advance();
    }

    /// Gives the containers that are being made their time. One that looks at a path on a dead network file system hangs in the
    /// kernel, and nobody can end it.
    fn wait_for_creations(&mut self) {
        if !self.creating.is_empty() && !self.waited {
            self.job(async {
                tokio::time::sleep(CREATION_LIMIT).await;
                Done::Waited
            });
        }
    }

    pub(super) fn waited(&mut self) {
        self.waited = self.phase != Phase::Ready && !self.creating.is_empty();
        if self.phase == Phase::Stopping && self.waited {
            tracing::warn!(
                pod = self.record.id,
                containers = self.names_of_creations(),
                "the pod is stopped although these are still being made: they hang in the kernel",
            );
        }
        self.advance();
    }

    fn names_of_creations(&self) -> String {
        self.creating.keys().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Takes the next step of stopping or removing the pod, if the last one is over.
    pub(super) fn advance(&mut self) {
        if self.pod_busy || self.removed {
            return;
        }
        match self.phase {
            Phase::Ready => {}
            Phase::Stopping => {
                // A start under way ends in running or not; only then is known what to kill.
                let unsettled = |slot: &Slot| match slot.phase() {
                    ContainerPhase::ContainerRunning => true,
                    ContainerPhase::ContainerCreated => slot.busy,
                    // The pod's end is told after those of its containers.
                    _ => slot.telling,
                };
                if (self.creating.is_empty() || self.waited) && !self.containers.values().any(unsettled) {
                    self.take_down();
                }
            }
            Phase::NotReady if self.remove_replies.is_empty() => {}
            Phase::NotReady => self.remove_all(),
        }
    }

    fn take_down(&mut self) {
        self.pod_busy = true;
        let (shared, record, file) = (Arc::clone(&self.shared), self.record.clone(), self.file.clone());
        let (operation, pod) = (self.begin(), self.seen());
        let due = !std::mem::replace(&mut self.told_stop, true);
        self.job(async move {
            if due {
                tell_pod(operation.as_ref(), PodStep::Stop, &pod).await;
            }
            let mut errors = sandbox::stop(&shared, &record).await;
            if errors.is_empty() {
                errors.extend(file.enter(PodPhase::PodNotReady).await.map_err(Error::Record).err());
            }
            Done::PodStopped { errors, operation }
        });
    }

    pub(super) fn pod_stopped(&mut self, errors: Vec<Error>) {
        self.pod_busy = false;
        if !errors.is_empty() {
            let error = self.incomplete("StopPodSandbox", errors);
            self.give_up_pod(error);
            return;
        }
        self.phase = Phase::NotReady;
        self.left = false;
        self.record.phase = PodPhase::PodNotReady.into();
        self.publish();
        let id = self.record.id.clone();
        self.announce(&id, EventKind::Stopped);
        for reply in std::mem::take(&mut self.stop_replies) {
            let _ = reply.send(Ok(()));
        }
        self.advance();
    }

    /// Removes the containers, and when none is left the pod.
    fn remove_all(&mut self) {
        if self.containers.is_empty() && self.creating.is_empty() {
            self.pod_busy = true;
            let (shared, record, file) = (Arc::clone(&self.shared), self.record.clone(), self.file.clone());
            let (operation, pod) = (self.begin(), self.seen());
            let due = !std::mem::replace(&mut self.told_remove, true);
            self.job(async move {
                if due {
                    tell_pod(operation.as_ref(), PodStep::Remove, &pod).await;
                }
                if let Err(error) = file.enter(PodPhase::PodRemoving).await {
                    return Done::PodRemoved { errors: vec![error.into()], operation };
                }
                Done::PodRemoved { errors: sandbox::unmake(&shared, &record).await, operation }
            });
            return;
        }
        if self.containers.is_empty() && self.waited {
            // What is made may come at any time, and has to be somebody's then.
            let (id, names) = (self.record.id.clone(), self.names_of_creations());
            answer_all(std::mem::take(&mut self.remove_replies), Error::StillMade { id, names });
            return;
        }
        let idle: Vec<_> =
            self.containers.iter().filter(|(_, slot)| !slot.busy).map(|(id, _)| id.clone()).collect();
        for id in idle {
            if let Some(slot) = self.containers.get_mut(&id) {
                slot.busy = true;
                slot.record.phase = ContainerPhase::ContainerRemoving.into();
                self.removal(&id);
            }
        }
    }

    pub(super) fn pod_removed(&mut self, errors: Vec<Error>) {
        self.pod_busy = false;
        if errors.is_empty() {
            self.removed = true;
        } else {
            let error = self.incomplete("RemovePodSandbox", errors);
            self.give_up_pod(error);
        }
    }

    /// Tells all who wait for the pod's end that it did not come to it. They can try again.
    pub(super) fn give_up_pod(&mut self, error: Error) {
        if self.phase == Phase::Stopping {
            self.phase = if self.lost { Phase::NotReady } else { Phase::Ready };
            self.left = true;
            self.publish();
        }
        let replies = self.stop_replies.drain(..).chain(self.remove_replies.drain(..)).collect();
        answer_all(replies, error);
    }

    fn incomplete(&self, call: &'static str, errors: Vec<Error>) -> Error {
        let list: Vec<_> = errors.iter().map(|error| crate::error::chain(error)).collect();
        tracing::warn!(pod = self.record.id, errors = list.join("; "), "{call} could not do everything");
        Error::Incomplete { call, id: self.record.id.clone(), list: list.join("; ") }
    }

    pub(super) fn pod_state(&self, call: &'static str) -> Error {
        let state = match self.phase {
            Phase::Ready => "ready",
            Phase::Stopping => "being stopped",
            Phase::NotReady => "not ready",
        };
        Error::PodState { id: self.record.id.clone(), state, call }
    }
}
