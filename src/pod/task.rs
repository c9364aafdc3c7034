//! The task of one pod: the only place where the state of the pod and of its containers changes.
//!
//! Calls arrive as [`Request`]s. Work that waits (for a shim, the kernel, a grace period) is a job: a future that the task
//! polls beside its inbox and that ends in a [`Done`], which is when state changes. Containers proceed side by side; on one
//! container a job that changes it (start, clean-up, removal) has it for itself, and requests for it wait in its slot.
//! Stopping is no such job: it only sends signals, and several may wait for the same end.

mod containers;
mod lifecycle;
mod network;
mod record;
mod sandbox;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tracing::Instrument as _;

use super::error::Error;
use super::event::EventKind;
use super::lifecycle::Operation;
use super::network::of_containers;
use super::request::{Asked, Handle, INBOX, Reply, Request};
use super::shared::Shared;
use super::slot::Slot;
use super::snapshot::PodSnapshot;
use crate::container::{self, Ended, Making, Refusal, Surroundings};
use crate::progress::Kind;
use crate::proto::berth::v1::{PodPhase, PodRecord};
use crate::proto::runtime::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use record::RecordFile;

/// A job came to its end.
enum Done {
    Created {
        key: (String, u32),
        id: String,
        result: Box<Result<Making, container::Error>>,
        /// Held until its outcome can be seen.
        operation: Option<Arc<dyn Operation>>,
    },
    Started {
        id: String,
        result: Result<u32, container::Error>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
    },
    /// A container's end was told to those who are told of such things.
    ToldStop {
        id: String,
    },
    /// A container's first process ended.
    Exited {
        id: String,
        ended: Ended,
    },
    /// What an ended container had is free.
    CleanedUp {
        id: String,
    },
    /// A stop was seen through, or failed.
    Stopped {
        result: Result<(), container::Error>,
        reply: Reply<()>,
    },
    /// A container was killed for its removal or its pod's end, or outlives that.
    Killed {
        id: String,
        result: Result<(), container::Error>,
    },
    Removed {
        id: String,
        errors: Vec<container::Error>,
        operation: Option<Arc<dyn Operation>>,
    },
    PodStopped {
        errors: Vec<Error>,
        operation: Option<Arc<dyn Operation>>,
    },
    PodRemoved {
        errors: Vec<Error>,
        operation: Option<Arc<dyn Operation>>,
    },
    /// Containers that were being made when the pod's end began have had their time.
    Waited,
    /// The process, or container, ended that all others of the pod live by.
    SandboxEnded,
    /// New resources of the pod were told, or refused.
    PodUpdateTold {
        overhead: Option<Box<LinuxContainerResources>>,
        resources: Option<Box<LinuxContainerResources>>,
        result: Result<(), Refusal>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
    },
    /// A container has new limits, or the kernel refused them.
    Updated {
        id: String,
        resources: Box<LinuxContainerResources>,
        result: Result<(), container::Error>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
    },
    /// The pod joined a network or left one, or could not.
    Networked {
        result: Result<(), Error>,
        reply: Reply<()>,
    },
    /// Nothing to do.
    Recorded,
}

/// What the pod as a whole is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ready,
    /// Containers are being killed, then the sandbox is taken down.
    Stopping,
    NotReady,
}

/// State of one pod. Owned by its task.
pub(super) struct Task {
    shared: Arc<Shared>,
    record: PodRecord,
    /// Where that is kept.
    file: RecordFile,
    config: Arc<PodSandboxConfig>,
    surroundings: Arc<Surroundings>,
    phase: Phase,
    containers: BTreeMap<String, Slot>,
    /// Containers being made, by name and attempt, and who waits for them.
    creating: HashMap<(String, u32), Creating>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    snapshot: watch::Sender<Arc<PodSnapshot>>,
    stop_replies: Vec<Reply<()>>,
    remove_replies: Vec<Reply<()>>,
    /// The pod's end was told to those who are told of such things; so was its removal.
    told_stop: bool,
    told_remove: bool,
    /// The job that takes the sandbox down, or removes it, runs.
    pod_busy: bool,
    removed: bool,
    /// The sandbox has lost what its containers live by.
    lost: bool,
    /// A stop left something behind: the next one goes on with it.
    left: bool,
    /// The pod's end waits no longer for the containers that are being made: what they hang in may never let them go.
    waited: bool,
}

struct Creating {
    config: ContainerConfig,
    replies: Vec<Reply<String>>,
}

/// What a task starts from.
pub(super) struct Start {
    pub(super) record: PodRecord,
    pub(super) surroundings: Arc<Surroundings>,
    /// Containers found again after a restart.
    pub(super) slots: Vec<Slot>,
    /// The pod is not ready, and something of its sandbox is left.
    pub(super) left: bool,
}

/// Starts the task of a pod.
pub(super) fn spawn(shared: Arc<Shared>, start: Start) -> Handle {
    let (requests, inbox) = mpsc::channel(INBOX);
    let config = Arc::clone(&start.surroundings.config);
    let phase = if start.record.phase() == PodPhase::PodReady { Phase::Ready } else { Phase::NotReady };
    let empty = PodSnapshot::new(&start.record, &start.surroundings, false, Vec::new());
    let (snapshot, published) = watch::channel(Arc::new(empty));
    let file = RecordFile::new(shared.records.clone(), start.record.clone());
    let mut task = Task {
        shared,
        record: start.record,
        file,
        config,
        surroundings: start.surroundings,
        phase,
        containers: BTreeMap::new(),
        creating: HashMap::new(),
        jobs: FuturesUnordered::new(),
        snapshot,
        stop_replies: Vec::new(),
        remove_replies: Vec::new(),
        told_stop: false,
        told_remove: false,
        pod_busy: false,
        removed: false,
        lost: false,
        left: start.left,
        waited: false,
    };
    for slot in start.slots {
        task.adopt(slot);
    }
    task.watch_sandbox();
    task.publish();
    tokio::spawn(task.run(inbox));
    Handle { requests, snapshot: published }
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Asked>) {
        let id = self.record.id.clone();
        while !self.removed {
            tokio::select! {
                asked = inbox.recv() => match asked {
                    Some(Asked { request, call }) => call.in_scope(|| self.handle(request)),
                    // Every handle is gone: the daemon shuts down. Containers go on without it.
                    None => return,
                },
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
            }
        }
        self.shared.networks.name_more(&id, &[]);
        self.announce(&id, EventKind::Deleted);
        self.shared.forget(&id, &self.config);
        let replies = std::mem::take(&mut self.remove_replies);
        // Requests that came too late are told so by their closed channel.
        drop(inbox);
        drop(self);
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
    }

    fn handle(&mut self, request: Request) {
        let (operation, container) = request.subject();
        let object = container.unwrap_or(&self.record.id);
        let _turn = self.shared.board.begin(Kind::Turn, operation, "pod_task", object);
        match request {
            Request::StopPod { reply } => self.stop_pod(reply),
            Request::RemovePod { reply } => self.remove_pod(reply),
            Request::Create { config, reply } => self.create(*config, reply),
            Request::Start { id, reply } => self.start(id, reply),
            Request::Stop { id, grace, reply } => self.stop(id, grace, reply),
            Request::Remove { id, reply } => self.remove(id, reply),
            Request::Update { id, resources, tell, reply } => self.update(id, resources, tell, reply),
            Request::Connect { network, options, reply } => self.connect(network, *options, reply),
            Request::Disconnect { network, reply } => self.disconnect(network, reply),
            Request::UpdatePod { overhead, resources, reply } => self.update_pod(overhead, resources, reply),
        }
    }

    fn done(&mut self, done: Done) {
        let _turn = self.shared.board.begin(Kind::Turn, "job_done", "pod_task", self.record.id.as_str());
        match done {
            Done::Created { key, id, result, operation } => self.created(&key, &id, *result, operation),
            Done::Started { id, result, reply, operation } => self.started(&id, result, reply, operation),
            Done::ToldStop { id } => self.told_stop(&id),
            Done::Exited { id, ended } => self.exited(&id, ended),
            Done::CleanedUp { id } => self.free(&id),
            Done::Stopped { result, reply } => {
                let _ = reply.send(result.map_err(Error::Container));
            }
            Done::Killed { id, result } => self.killed(&id, result),
            // An operation that is over is let go when its outcome is published, not before.
            Done::Removed { id, errors, operation: _held } => self.container_removed(&id, errors),
            Done::PodStopped { errors, operation: _held } => self.pod_stopped(errors),
            Done::PodRemoved { errors, operation: _held } => self.pod_removed(errors),
            Done::Waited => self.waited(),
            Done::SandboxEnded => self.sandbox_ended(),
            Done::PodUpdateTold { overhead, resources, result, reply, operation } => match result {
                Ok(()) => self.record_pod_update(overhead, resources, reply, operation),
                Err(refusal) => {
                    let _ = reply.send(Err(Error::Container(refusal.into())));
                }
            },
            Done::Updated { id, resources, result, reply, operation } => {
                self.updated(&id, &resources, result, reply, operation);
            }
            Done::Networked { result, reply } => self.networked(result, reply),
            Done::Recorded => {}
        }
    }

    /// Runs a job beside the others. It belongs to the call that is being handled, if one is.
    fn job(&mut self, job: impl Future<Output = Done> + Send + 'static) {
        self.jobs.push(Box::pin(job.in_current_span()));
    }

    /// Publishes what is known now.
    fn publish(&self) {
        let mut containers: Vec<_> =
            self.containers.values().map(|slot| Arc::new(slot.snapshot(&self.config))).collect();
        containers.sort_by_key(|container| container.created_at);
        let ready = self.phase == Phase::Ready;
        let names = if ready { of_containers(containers.iter().map(AsRef::as_ref)) } else { Vec::new() };
        self.shared.networks.name_more(&self.record.id, &names);
        self.snapshot.send_replace(Arc::new(PodSnapshot::new(
            &self.record,
            &self.surroundings,
            ready,
            containers,
        )));
    }

    /// Tells of what happened to a container, or with its own id to the pod. What is published is what it led to.
    fn announce(&self, id: &str, kind: EventKind) {
        self.shared.events.announce(id, kind, Arc::clone(&self.snapshot.borrow()));
    }

    /// Writes a container's record, then answers `reply`: what a caller was told is true after a crash too. That the record
    /// could not be written is not the caller's failure: what it says is then found out at start-up.
    fn write(&mut self, id: &str, reply: Option<Reply<()>>) {
        let Some(writing) = self.writing(id) else { return };
        self.job(async move {
            writing.await;
            if let Some(reply) = reply {
                let _ = reply.send(Ok(()));
            }
            Done::Recorded
        });
    }

    /// Writes a container's record as it is now, unless a later one was written first.
    fn writing(&mut self, id: &str) -> Option<impl Future<Output = ()> + Send + use<>> {
        let slot = self.containers.get_mut(id)?;
        slot.version += 1;
        let (record, version, written) = (slot.full_record(), slot.version, Arc::clone(&slot.written));
        let shared = Arc::clone(&self.shared);
        Some(async move {
            let mut written = written.lock().await;
            if *written < version {
                *written = version;
                if let Err(error) = shared.tools.records.put(&record.id, &record).await {
                    let error = crate::error::chain(&error);
                    tracing::error!(container = record.id, error, "writing the record");
                }
            }
        })
    }

    fn not_found(id: &str) -> Error {
        Error::NotFound { what: "container", id: id.to_owned() }
    }
}
