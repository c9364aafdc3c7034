//! New limits of containers, and of the pod.

use std::sync::Arc;

use super::lifecycle::{tell, tell_pod};
use super::{Done, Reply, Task};
use crate::container;
use crate::pod::error::Error;
use crate::pod::lifecycle::{ContainerStep, Operation, PodStep};
use crate::proto::berth::v1::ContainerPhase;
use crate::proto::runtime::v1::LinuxContainerResources;

impl Task {
    /// Not a job that has the container for itself: a kernel that takes its time to reclaim memory must not keep the
    /// container from being stopped. Updates of one container follow one another.
    pub(super) fn update(
        &mut self,
        id: String,
        mut resources: Box<LinuxContainerResources>,
        tell: bool,
        reply: Reply<()>,
    ) {
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
        let operation = self.begin().filter(|operation| tell && !operation.is_idle());
        let (pod, container) = (self.seen(), self.container_now(&id));
        self.job(async move {
            let _turn = turn.lock().await;
            if let (Some(operation), Some(container)) = (&operation, container) {
                match operation.update_container(&pod, &container, (*resources).clone()).await {
                    Ok(changed) => *resources = changed,
                    Err(refusal) => {
                        let result = Err(refusal.into());
                        return Done::Updated { id, resources, result, reply, operation: None };
                    }
                }
            }
            let result = container::update(&tools, &record, creation, layout, (*resources).clone()).await;
            Done::Updated { id, resources, result, reply, operation }
        });
    }

    pub(super) fn updated(
        &mut self,
        id: &str,
        resources: &LinuxContainerResources,
        result: Result<(), container::Error>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
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
        let writing = self.writing(id);
        self.publish();
        let told = operation.zip(self.container_now(id));
        let pod = told.as_ref().map(|_| self.seen());
        self.job(async move {
            // What the caller is told is true after a crash too.
            if let Some(writing) = writing {
                writing.await;
            }
            if let (Some((operation, container)), Some(pod)) = (told, pod) {
                tell(&*operation, ContainerStep::Updated, &pod, &container).await;
            }
            let _ = reply.send(Ok(()));
            Done::Recorded
        });
    }

    /// The pod's cgroup is its caller's; containers made from now on are told of the new figures in their annotations.
    pub(super) fn update_pod(
        &mut self,
        overhead: Option<Box<LinuxContainerResources>>,
        resources: Option<Box<LinuxContainerResources>>,
        reply: Reply<()>,
    ) {
        let operation = self.begin().filter(|operation| !operation.is_idle());
        let Some(operation) = operation else {
            return self.record_pod_update(overhead, resources, reply, None);
        };
        let pod = self.seen();
        self.job(async move {
            let result = operation.update_pod(&pod, overhead.as_deref(), resources.as_deref()).await;
            Done::PodUpdateTold { overhead, resources, result, reply, operation: Some(operation) }
        });
    }

    pub(super) fn record_pod_update(
        &mut self,
        overhead: Option<Box<LinuxContainerResources>>,
        resources: Option<Box<LinuxContainerResources>>,
        reply: Reply<()>,
        operation: Option<Arc<dyn Operation>>,
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
        let (file, pod) = (self.file.clone(), self.seen());
        file.change(|record| record.config.clone_from(&self.record.config));
        self.job(async move {
            let result = file.write().await.map_err(Error::Record);
            tell_pod(operation.as_ref(), PodStep::Updated, &pod).await;
            let _ = reply.send(result);
            Done::Recorded
        });
    }
}
