//! Requests and jobs of a pod's containers.

use std::sync::Arc;
use std::time::Duration;

use super::lifecycle::{Told, tell, tell_undone};
use super::{Creating, Done, Phase, Task};
use crate::container::{self, Ended, Making};
use crate::meter::Stage;
use crate::pod::error::Error;
use crate::pod::event::EventKind;
use crate::pod::lifecycle::{ContainerStep, Operation};
use crate::pod::request::{Reply, Request};
use crate::pod::slot::{Slot, key};
use crate::proto::berth::v1::ContainerPhase;
use crate::proto::runtime::v1::{ContainerConfig, NamespaceMode};

/// Exit code of a container that could not be run, when the reason says nothing better; as containerd gives it.
const CANNOT_RUN: i32 = 128;

impl Task {
    /// Takes in a container that was found again after a restart.
    pub(super) fn adopt(&mut self, mut slot: Slot) {
        // Who is told of its end now never knew of it.
        slot.told_stop = slot.phase() == ContainerPhase::ContainerExited;
        let id = slot.record.id.clone();
        let watched = (slot.phase() == ContainerPhase::ContainerRunning).then(|| slot.shim.clone()).flatten();
        self.shared.index(&id, &self.record.id);
        self.containers.insert(id.clone(), slot);
        if let Some(shim) = watched {
            self.job(async move { Done::Exited { id, ended: container::watch(&shim).await } });
        }
    }

    pub(super) fn create(&mut self, config: ContainerConfig, reply: Reply<String>) {
        if self.phase != Phase::Ready {
            let error = self.pod_state("CreateContainer");
            let _ = reply.send(Err(error));
            return;
        }
        let key = key(&config);
        let name = || format!("{} (attempt {})", key.0, key.1);
        if let Some(creating) = self.creating.get_mut(&key) {
            if creating.config == config {
                creating.replies.push(reply);
            } else {
                let _ = reply.send(Err(Error::Conflict { what: "container", name: name() }));
            }
            return;
        }
        if let Some(holder) = self.containers.values().find(|slot| slot.key() == key) {
            let id = holder.record.id.clone();
            let _ = reply.send(Err(Error::AlreadyExists { what: "container", name: name(), id }));
            return;
        }
        let (id, target) =
            match crate::id::generate().map_err(Error::Id).and_then(|id| Ok((id, self.target(&config)?))) {
                Ok(both) => both,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return;
                }
            };
        self.creating.insert(key.clone(), Creating { config: config.clone(), replies: vec![reply] });
        let (tools, surroundings) = (Arc::clone(&self.shared.tools), Arc::clone(&self.surroundings));
        let operation = self.begin();
        let (pod, told) = (self.seen(), Told::default());
        let adjust = self.adjust(operation.as_ref(), &told);
        self.job(async move {
            let now = container::now();
            let result =
                container::make(&tools, &surroundings, id.clone(), config, target, adjust, now).await;
            if result.is_err() {
                tell_undone(operation.as_ref(), &pod, told.get()).await;
            }
            Done::Created { key, id, result: Box::new(result), operation }
        });
    }

    /// The process whose PID namespace the container wants to see, where it wants another container's.
    fn target(&self, config: &ContainerConfig) -> Result<Option<u32>, Error> {
        let options = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.as_ref());
        let Some(options) = options.filter(|options| options.pid() == NamespaceMode::Target) else {
            return Ok(None);
        };
        let target = crate::id::resolve(&options.target_id, self.containers.keys())
            .and_then(|id| self.containers.get(id))
            .filter(|slot| slot.phase() == ContainerPhase::ContainerRunning);
        match target {
            Some(slot) => Ok(Some(slot.record.pid)),
            None => Err(container::Error::NoTarget { id: options.target_id.clone() }.into()),
        }
    }

    pub(super) fn created(
        &mut self,
        key: &(String, u32),
        id: &str,
        result: Result<Making, container::Error>,
        operation: Option<Arc<dyn Operation>>,
    ) {
        let replies = self.creating.remove(key).map(|creating| creating.replies).unwrap_or_default();
        self.waited &= !self.creating.is_empty();
        match result {
            Ok(Making { record, shim, creation, hold }) => {
                let layout = self.shared.tools.layout(id);
                let slot = Slot::new(record, layout, Some(shim), Some(creation), hold);
                self.shared.index(id, &self.record.id);
                self.containers.insert(id.to_owned(), slot);
                self.publish();
                self.announce(id, EventKind::Created);
                let answer = move |id: &str| {
                    for reply in replies {
                        let _ = reply.send(Ok(id.to_owned()));
                    }
                };
                match (operation.filter(|operation| !operation.is_idle()), self.container_now(id)) {
                    (Some(operation), Some(container)) => {
                        let pod = self.seen();
                        self.job(async move {
                            tell(&*operation, ContainerStep::Created, &pod, &container).await;
                            answer(&container.id);
                            Done::Recorded
                        });
                    }
                    _ => answer(id),
                }
            }
            Err(error) => answer_all(replies, error.into()),
        }
        self.advance();
    }

    pub(super) fn start(&mut self, id: String, reply: Reply<()>) {
        let pod_error = (self.phase != Phase::Ready).then(|| self.pod_state("StartContainer"));
        let Some(slot) = self.containers.get_mut(&id) else {
            let _ = reply.send(Err(Self::not_found(&id)));
            return;
        };
        if let Some(error) = pod_error {
            let _ = reply.send(Err(error));
            return;
        }
        if slot.busy {
            slot.waiting.push_back(Request::Start { id, reply });
            return;
        }
        let (ContainerPhase::ContainerCreated, Some(shim), Some(creation)) =
            (slot.phase(), slot.shim.clone(), slot.creation.clone())
        else {
            let state = slot.state_name();
            let (call, needed) = ("StartContainer", "created");
            let _ = reply.send(Err(Error::ContainerState { id, state, call, needed }));
            return;
        };
        slot.busy = true;
        let stages = self.shared.tools.stages.clone();
        let operation = self.begin();
        let (pod, container) = (self.seen(), self.container_now(&id));
        self.job(async move {
            let told = match (operation.as_ref().filter(|operation| !operation.is_idle()), container) {
                (Some(operation), Some(container)) => {
                    operation.container(ContainerStep::Start, &pod, &container).await
                }
                _ => Ok(()),
            };
            let result = match told {
                Ok(()) => {
                    let starting = container::start(&id, &shim, creation);
                    stages.time(Stage::ContainerStart, &id, starting).await
                }
                Err(refusal) => Err(refusal.into()),
            };
            Done::Started { id, result, reply, operation }
        });
    }

    pub(super) fn started(
        &mut self,
        id: &str,
        result: Result<u32, container::Error>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
    ) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let shim = slot.shim.clone();
        match result {
            Ok(pid) => {
                slot.started(pid, container::now());
                self.publish();
                let told = operation.filter(|operation| !operation.is_idle());
                match (told, self.container_now(id)) {
                    (Some(operation), Some(container)) => {
                        let pod = self.seen();
                        let writing = self.writing(id);
                        self.job(async move {
                            if let Some(writing) = writing {
                                writing.await;
                            }
                            tell(&*operation, ContainerStep::Started, &pod, &container).await;
                            let _ = reply.send(Ok(()));
                            Done::Recorded
                        });
                    }
                    _ => self.write(id, Some(reply)),
                }
                self.announce(id, EventKind::Started);
                if let Some(shim) = shim {
                    let id = id.to_owned();
                    self.job(async move { Done::Exited { id, ended: container::watch(&shim).await } });
                }
                if self.phase == Phase::Stopping {
                    // The pod's end overtook the start.
                    self.kill(id);
                }
                self.free(id);
            }
            Err(error) => {
                let message = crate::error::chain(&error);
                slot.ended(Ended {
                    exit_code: exit_code_of(&message),
                    finished_at: container::now(),
                    reason: "ContainerCannotRun",
                    message,
                    shim_lost: false,
                });
                self.write(id, None);
                self.publish();
                self.announce(id, EventKind::Stopped);
                let _ = reply.send(Err(error.into()));
                self.end(id);
            }
        }
    }

    pub(super) fn exited(&mut self, id: &str, ended: Ended) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        tracing::info!(container = id, exit_code = ended.exit_code, reason = ended.reason, "container ended");
        if ended.shim_lost {
            self.shared.recoveries.shim_lost();
        }
        slot.ended(ended);
        self.write(id, None);
        self.publish();
        self.announce(id, EventKind::Stopped);
        self.end(id);
        self.advance();
    }

    /// Frees what an ended container still has in the kernel, and its shim.
    pub(super) fn clean_up(&mut self, id: &str) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let Some(shim) = slot.shim.take() else { return };
        slot.busy = true;
        slot.creation = None;
        let (tools, record) = (Arc::clone(&self.shared.tools), slot.record.clone());
        self.job(async move {
            container::clean_up(&record.id, &shim).await;
            // A shim that was killed leaves the cgroup, and maybe processes in it.
            container::end_without_shim(&tools, &record).await;
            Done::CleanedUp { id: record.id }
        });
    }

    pub(super) fn stop(&mut self, id: String, grace: Duration, reply: Reply<()>) {
        let Some(slot) = self.containers.get_mut(&id) else {
            // CRI: stopping what is gone succeeds.
            let _ = reply.send(Ok(()));
            return;
        };
        match slot.phase() {
            ContainerPhase::ContainerRunning => {
                let (snapshot, exited) = (slot.snapshot(&self.config), slot.exited.subscribe());
                self.job(async move {
                    Done::Stopped { result: container::stop(&snapshot, grace, exited).await, reply }
                });
            }
            // It is about to run, and then there is something to stop.
            ContainerPhase::ContainerCreated if slot.busy => {
                slot.waiting.push_back(Request::Stop { id, grace, reply });
            }
            _ => {
                let _ = reply.send(Ok(()));
            }
        }
    }

    pub(super) fn remove(&mut self, id: String, reply: Reply<()>) {
        let Some(slot) = self.containers.get_mut(&id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        if slot.busy {
            slot.waiting.push_back(Request::Remove { id, reply });
            return;
        }
        if slot.phase() == ContainerPhase::ContainerRunning {
            // CRI: a running container is stopped by force. Its end leads to the request that waits here.
            slot.waiting.push_back(Request::Remove { id: id.clone(), reply });
            self.kill(&id);
            return;
        }
        slot.busy = true;
        slot.record.phase = ContainerPhase::ContainerRemoving.into();
        slot.waiting.push_front(Request::Remove { id: id.clone(), reply });
        self.removal(&id);
    }

    /// The job that removes a container which does not run.
    pub(super) fn removal(&mut self, id: &str) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        let (tools, record) = (Arc::clone(&self.shared.tools), slot.full_record());
        let (shim, creation) = (slot.shim.take(), slot.creation.take());
        let written = Arc::clone(&slot.written);
        let tell_stop = !std::mem::replace(&mut slot.told_stop, true);
        let tell_remove = !std::mem::replace(&mut slot.told_remove, true);
        let operation = self.begin();
        let (pod, container) = (self.seen(), self.container_before(id));
        self.job(async move {
            let id = record.id.clone();
            if let (Some(operation), Some(container)) = (&operation, container) {
                for (step, due) in [(ContainerStep::Stop, tell_stop), (ContainerStep::Remove, tell_remove)] {
                    if due {
                        tell(&**operation, step, &pod, &container).await;
                    }
                }
            }
            // No version written earlier may come after this one, nor after the record is gone.
            *written.lock().await = u64::MAX;
            if let Err(error) = tools.records.put(&id, &record).await {
                return Done::Removed { id, errors: vec![error.into()], operation };
            }
            if let Some(shim) = shim {
                // Never started: what the shim made is undone as if it had been.
                if let Some(creation) = creation {
                    let _ = creation.await;
                }
                let _ = shim.kill("", libc::SIGKILL, true).await;
                let _ = tokio::time::timeout(Duration::from_secs(5), shim.wait("")).await;
                container::clean_up(&id, &shim).await;
                container::end_without_shim(&tools, &record).await;
            }
            Done::Removed { errors: container::remove(&tools, &record).await, id, operation }
        });
    }

    pub(super) fn container_removed(&mut self, id: &str, errors: Vec<container::Error>) {
        if errors.is_empty() {
            self.shared.unindex(id);
            let waiting = self.containers.remove(id).map(|slot| slot.waiting).unwrap_or_default();
            self.publish();
            self.announce(id, EventKind::Deleted);
            for request in waiting {
                self.handle(request);
            }
        } else if let Some(slot) = self.containers.get_mut(id) {
            // It can be tried again; until then it shows as what it is, ended.
            slot.busy = false;
            slot.record.phase = ContainerPhase::ContainerExited.into();
            slot.exited.send_replace(true);
            let mut errors = errors.into_iter();
            let first = errors.next().map(Error::Container);
            for error in errors {
                tracing::warn!(container = id, error = crate::error::chain(&error), "removing a container");
            }
            let first = Arc::new(first.unwrap_or(Error::ShuttingDown));
            answer_all(slot.take_removals(), Error::Joined(Arc::clone(&first)));
            self.give_up_pod(Error::Joined(first));
            self.free(id);
        }
        self.advance();
    }

    /// Kills a running container on the pod's behalf.
    pub(super) fn kill(&mut self, id: &str) {
        let Some(slot) = self.containers.get(id) else { return };
        let Some(shim) = slot.shim.clone() else { return };
        let (snapshot, exited) = (slot.snapshot(&self.config), slot.exited.subscribe());
        self.job(async move {
            let result = container::kill(&snapshot.id, &shim, &snapshot.state, exited).await;
            Done::Killed { id: snapshot.id, result }
        });
    }

    pub(super) fn killed(&mut self, id: &str, result: Result<(), container::Error>) {
        let Err(error) = result else { return };
        let removals = self.containers.get_mut(id).map(Slot::take_removals).unwrap_or_default();
        let error = Arc::new(Error::Container(error));
        answer_all(removals, Error::Joined(Arc::clone(&error)));
        self.give_up_pod(Error::Joined(error));
    }

    /// A job is through with the container: what waited for it goes on.
    pub(super) fn free(&mut self, id: &str) {
        let Some(slot) = self.containers.get_mut(id) else { return };
        slot.busy = false;
        let waiting = std::mem::take(&mut slot.waiting);
        for request in waiting {
            self.handle(request);
        }
        self.advance();
    }
}

/// Answers all with the same error.
pub(super) fn answer_all<T>(replies: Vec<Reply<T>>, error: Error) {
    let error = Arc::new(error);
    for reply in replies {
        let _ = reply.send(Err(Error::Joined(Arc::clone(&error))));
    }
}

/// The exit code a shell gives for the same failure: 127 for a command that is not there, 126 for one that can't be
/// executed.
fn exit_code_of(message: &str) -> i32 {
    if message.contains("executable file not found") || message.contains("no such file or directory") {
        127
    } else if message.contains("permission denied") || message.contains("not executable") {
        126
    } else {
        CANNOT_RUN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_code_of("exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(exit_code_of("exec: \"/x\": permission denied"), 126);
        assert_eq!(exit_code_of("mounting /proc"), 128);
    }
}
