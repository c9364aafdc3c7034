//! A container's place in the task of its pod.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use super::request::{Reply, Request};
use crate::container::{ContainerSnapshot, ContainerState, Creation, Ended, Layout};
use crate::image::LayerHold;
use crate::proto::berth::v1::{ContainerPhase, ContainerRecord};
use crate::proto::runtime::v1::{ContainerConfig, PodSandboxConfig};
use crate::shim::Shim;

/// One container, as its pod's task knows it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) record: ContainerRecord,
    pub(super) config: Arc<ContainerConfig>,
    pub(super) layout: Layout,
    pub(super) shim: Option<Shim>,
    pub(super) creation: Option<Creation>,
    /// Keeps the image's layers while the container is there.
    pub(super) _hold: LayerHold,
    /// Tells those who stop it that it has ended.
    pub(super) exited: watch::Sender<bool>,
    /// A job changes it now; requests that need it still wait in `waiting`.
    pub(super) busy: bool,
    pub(super) waiting: VecDeque<Request>,
    /// Number of the record's latest version, and of the one last written: an older one never replaces a newer.
    pub(super) version: u64,
    pub(super) written: Arc<tokio::sync::Mutex<u64>>,
    /// Its end was told to those who are told of such things, or is just being told.
    pub(super) told_stop: bool,
    /// The same for its removal.
    pub(super) told_remove: bool,
    /// Its end is just being told.
    pub(super) telling: bool,
    /// Held while its limits are changed.
    pub(super) updating: Arc<tokio::sync::Mutex<()>>,
}

impl Slot {
    pub(super) fn new(
        mut record: ContainerRecord,
        layout: Layout,
        shim: Option<Shim>,
        creation: Option<Creation>,
        hold: LayerHold,
    ) -> Self {
        // The snapshot shares the configuration; the record gets it back when it is written.
        let config = Arc::new(record.config.take().unwrap_or_default());
        let ended = record.phase() == ContainerPhase::ContainerExited;
        Self {
            record,
            config,
            layout,
            shim,
            creation,
            _hold: hold,
            exited: watch::Sender::new(ended),
            busy: false,
            waiting: VecDeque::new(),
            version: 0,
            written: Arc::default(),
            told_stop: false,
            told_remove: false,
            telling: false,
            updating: Arc::default(),
        }
    }

    pub(super) fn phase(&self) -> ContainerPhase {
        self.record.phase()
    }

    /// Name and attempt: what makes a container of a pod the same.
    pub(super) fn key(&self) -> (String, u32) {
        key(&self.config)
    }

    /// The record with its configuration, to be written.
    pub(super) fn full_record(&self) -> ContainerRecord {
        ContainerRecord { config: Some((*self.config).clone()), ..self.record.clone() }
    }

    pub(super) fn snapshot(&self, pod: &PodSandboxConfig) -> ContainerSnapshot {
        ContainerSnapshot::new(&self.record, Arc::clone(&self.config), pod, &self.layout, self.shim.clone())
    }

    pub(super) fn started(&mut self, pid: u32, at: i64) {
        self.record.phase = ContainerPhase::ContainerRunning.into();
        self.record.pid = pid;
        self.record.started_at = at;
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        self.record.phase = ContainerPhase::ContainerExited.into();
        self.record.pid = 0;
        self.record.exit_code = ended.exit_code;
        // A short one may have ended before its start was noted.
        self.record.finished_at = ended.finished_at.max(self.record.started_at);
        ended.reason.clone_into(&mut self.record.reason);
        self.record.message = ended.message;
        self.exited.send_replace(true);
    }

    /// Takes out the waiting removals, to answer them.
    pub(super) fn take_removals(&mut self) -> Vec<Reply<()>> {
        let mut removals = Vec::new();
        for request in std::mem::take(&mut self.waiting) {
            match request {
                Request::Remove { reply, .. } => removals.push(reply),
                other => self.waiting.push_back(other),
            }
        }
        removals
    }

    /// What it is, for people.
    pub(super) fn state_name(&self) -> &'static str {
        match ContainerState::of(&self.record) {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited { .. } => "exited",
            ContainerState::Unknown => "being removed",
        }
    }
}

/// Name and attempt of a container's configuration.
pub(super) fn key(config: &ContainerConfig) -> (String, u32) {
    config.metadata.as_ref().map(|metadata| (metadata.name.clone(), metadata.attempt)).unwrap_or_default()
}
