//! What happens to pods and containers, as it happens.
//!
//! A pod's task sends each event together with the snapshot it led to, so a reader sees events of one pod in order and
//! never a status older than the event. The channel holds a fixed number of events for all readers together: one that
//! falls behind by more is told so and loses its place; it costs nobody else anything.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::snapshot::PodSnapshot;

/// Events that a reader may be behind.
const CAPACITY: usize = 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Created,
    /// It runs.
    Started,
    /// It ended, or was stopped.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something happened to a pod sandbox or a container.
#[derive(Clone, Debug)]
pub struct PodEvent {
    /// The container; for the sandbox itself, the pod.
    pub id: String,
    /// What happened to it.
    pub kind: EventKind,
    /// When, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// The pod right after it.
    pub pod: Arc<PodSnapshot>,
}

/// Where events are sent to.
#[derive(Clone, Debug)]
pub(super) struct Announcer(broadcast::Sender<Arc<PodEvent>>);

impl Announcer {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    /// Nobody listening is fine.
    pub(super) fn announce(&self, id: &str, kind: EventKind, pod: Arc<PodSnapshot>) {
        let event = PodEvent { id: id.to_owned(), kind, at: crate::container::now(), pod };
        let _ = self.0.send(Arc::new(event));
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<PodEvent>> {
        self.0.subscribe()
    }
}
