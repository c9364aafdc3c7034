//! New limits of containers, and of the pod.

use std::sync::Arc;

use super::{Done, Reply, Task};
use crate::container;
use crate::pod::error::Error;
use crate::proto::berth::v1::ContainerPhase;
use crate::proto::runtime::v1::LinuxContainerResources;

impl Task {
    /// Not a job that has the container for itself: a kernel that takes its time to reclaim memory must not keep the
    /// container from being stopped. Updates of one container follow one another.
    pub(super) fn update(&mut self, id: String, resources: Box<LinuxContainerResources>, reply: Reply<()>) {
        let Some(slot) = self.containers.get(&id) else {
            let _ = reply.send(Err(Self::not_found(&id)));
            return;
        };
        if slot.phase() == ContainerPhase::ContainerRemoving {
            let state = slot.state_name();
            let (call, needed) = ("UpdateContainerResources", "created or running");
            let _ = reply.send(Err(Error::ContainerState { id, state, call, needed }));
            return;
        }
        let (tools, record, layout) =
            (Arc::clone(&self.shared.tools), slot.record.clone(), slot.layout.clone());
        let (creation, turn) = (slot.creation.clone(), Arc::clone(&slot.updating));
        self.job(async move {
            let _turn = turn.lock().await;
            let result = container::update(&tools, &record, creation, layout, (*resources).clone()).await;
            Done::Updated { id, resources, result, reply }
        });
    }

    pub(super) fn updated(
        &mut self,
        id: &str,
        resources: &LinuxContainerResources,
        result: Result<(), container::Error>,
        reply: Reply<()>,
    ) {
        if let Err(error) = result {
            let _ = reply.send(Err(error.into()));
            return;
        }
        let Some(slot) = self.containers.get_mut(id) else {
            let _ = reply.send(Err(Self::not_found(id)));
            return;
        };
        container::merge(&mut Arc::make_mut(&mut slot.config).linux, resources);
        self.write(id, None);
        self.publish();
        let _ = reply.send(Ok(()));
    }

    /// The pod's cgroup is its caller's; containers made from now on are told of the new figures in their annotations.
    pub(super) fn update_pod(
        &mut self,
        overhead: Option<Box<LinuxContainerResources>>,
        resources: Option<Box<LinuxContainerResources>>,
        reply: Reply<()>,
    ) {
        let linux = Arc::make_mut(&mut self.config).linux.get_or_insert_default();
        for (old, new) in [(&mut linux.overhead, overhead), (&mut linux.resources, resources)] {
            if let Some(new) = new {
                container::merge_resources(old.get_or_insert_default(), &new);
            }
        }
        Arc::make_mut(&mut self.surroundings).config = Arc::clone(&self.config);
        self.record.config = Some((*self.config).clone());
        self.publish();
        let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
        self.job(async move {
            let result = shared.records.put(&record.id, &record).await.map_err(Error::Record);
            let _ = reply.send(result);
            Done::Recorded
        });
    }
}
