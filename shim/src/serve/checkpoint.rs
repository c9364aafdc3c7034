//! The Checkpoint call: what the resident part does of it.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskCheckpointed;
use containerd_shim_protos::topics::TASK_CHECKPOINTED_EVENT_TOPIC;

use crate::cgroup;
use crate::checkpoint;
use crate::criu::request::Dump;
use crate::criu::wire;
use crate::job;
use crate::status::{Code, Failure};

use super::Shim;
use super::answer::{Outcome, not_found, refused};
use super::container::{Phase, Reply};
use super::jobs::{Purpose, Running};

impl Shim {
    pub(super) fn checkpoint(&mut self, reply: Reply, request: api::CheckpointTaskRequest) -> Outcome {
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if !matches!(container.phase, Phase::Running) {
            return Err(refused(
                "the container is not running: only a running one has something to checkpoint",
            ));
        }
        if self.busy() {
            return Err(refused("another call on the container is under way"));
        }
        let images = PathBuf::from(&request.path);
        if !images.is_absolute() {
            let message = format!("path of the checkpoint: {:?} is not absolute", request.path);
            return Err(Failure::new(Code::InvalidArgument, message));
        }
        let asked = wire::asked(&request.options).map_err(|error| {
            Failure::new(Code::InvalidArgument, format!("options of the checkpoint: {error}"))
        })?;
        let work = if asked.work.is_empty() { images.clone() } else { PathBuf::from(&asked.work) };
        let dump = Dump {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            pid: container.pid,
            cgroups: self.cgroups.clone(),
            paused: self.paused,
            images,
            work,
            limit: (asked.limit > 0).then(|| Duration::from_nanos(asked.limit)),
            asked,
        };
        self.cool_down();
        let binary = self.binary.clone();
        let job = job::spawn(&[], move |reporter| checkpoint::run(&dump, binary.as_ref(), reporter))?;
        self.told_checkpoint = request.path;
        self.jobs.push(Running::new(job, Purpose::Checkpoint, reply));
        Ok(())
    }

    pub(super) fn checkpointed(&mut self, reply: Reply, result: Result<(), Failure>) {
        let checkpoint = std::mem::take(&mut self.told_checkpoint);
        // Whoever froze it may have been killed before he could undo that.
        if !self.paused && result.is_err() {
            let _ = cgroup::freeze(&self.cgroups, false);
        }
        self.warm_up();
        match result {
            Ok(()) => {
                self.answer(reply, &api::Empty::default());
                let container_id = self.id.clone();
                let event = TaskCheckpointed { container_id, checkpoint, ..Default::default() };
                self.publish(TASK_CHECKPOINTED_EVENT_TOPIC, &event);
            }
            Err(failure) => self.refuse(reply, &failure),
        }
    }
}
