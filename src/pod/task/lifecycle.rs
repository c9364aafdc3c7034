//! What others are told of this pod and its containers, and what they have a say in.

use std::sync::{Arc, OnceLock};

use futures::FutureExt;

use super::{Done, Task};
use crate::container::{Adjust, ContainerSnapshot, ContainerState};
use crate::pod::lifecycle::{ContainerStep, Operation, PodStep};
use crate::pod::snapshot::PodSnapshot;
use crate::proto::berth::v1::ContainerPhase;

/// The container that others were told of before it was made, to tell them when it came to nothing.
pub(super) type Told = Arc<OnceLock<Arc<ContainerSnapshot>>>;

impl Task {
    /// Begins an operation of which somebody is to be told. `None` when there is nobody.
    pub(super) fn begin(&self) -> Option<Arc<dyn Operation>> {
        self.shared.begin()
    }

    /// The pod as others see it now.
    pub(super) fn seen(&self) -> Arc<PodSnapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// A container as it is now, which may be further than what others see.
    pub(super) fn container_now(&self, id: &str) -> Option<Arc<ContainerSnapshot>> {
        self.containers.get(id).map(|slot| Arc::new(slot.snapshot(&self.config)))
    }

    /// A container that is being removed, as it was before that.
    pub(super) fn container_before(&self, id: &str) -> Option<Arc<ContainerSnapshot>> {
        let slot = self.containers.get(id)?;
        let phase = if *slot.exited.borrow() {
            ContainerPhase::ContainerExited
        } else {
            ContainerPhase::ContainerCreated
        };
        let mut record = slot.record.clone();
        record.set_phase(phase);
        let state = ContainerState::of(&record);
        Some(Arc::new(ContainerSnapshot { state, ..slot.snapshot(&self.config) }))
    }

    /// Lets others change a container's specification before it is made. `None` when nobody is there who could.
    pub(super) fn adjust(&self, operation: Option<&Arc<dyn Operation>>, told: &Told) -> Option<Adjust> {
        let operation = Arc::clone(operation.filter(|operation| !operation.is_idle())?);
        let (pod, told) = (self.seen(), Arc::clone(told));
        Some(Box::new(move |container, spec| {
            let _ = told.set(Arc::clone(&container));
            async move { operation.create_container(&pod, &container, spec).await }.boxed()
        }))
    }

    /// Tells of a container's end, once, and then frees what it had.
    pub(super) fn end(&mut self, id: &str) {
        let operation = self.begin().filter(|operation| !operation.is_idle());
        let (Some(operation), Some(container)) = (operation, self.container_now(id)) else {
            return self.clean_up(id);
        };
        let pod = self.seen();
        let Some(slot) = self.containers.get_mut(id).filter(|slot| !slot.told_stop) else {
            return self.clean_up(id);
        };
        (slot.told_stop, slot.telling, slot.busy) = (true, true, true);
        self.job(async move {
            tell(&*operation, ContainerStep::Stop, &pod, &container).await;
            Done::ToldStop { id: container.id.clone() }
        });
    }

    pub(super) fn told_stop(&mut self, id: &str) {
        if let Some(slot) = self.containers.get_mut(id) {
            slot.telling = false;
            slot.busy = false;
        }
        self.clean_up(id);
        if self.containers.get(id).is_some_and(|slot| !slot.busy) {
            self.free(id);
        }
        self.advance();
    }
}

/// Tells of a container's step that can't be refused any more.
pub(super) async fn tell(
    operation: &dyn Operation,
    step: ContainerStep,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
) {
    if operation.is_idle() {
        return;
    }
    if let Err(error) = operation.container(step, pod, container).await {
        tracing::warn!(container = container.id, %error, "telling of a container's step");
    }
}

/// Tells of the end of a container that was never made whole.
pub(super) async fn tell_undone(
    operation: Option<&Arc<dyn Operation>>,
    pod: &PodSnapshot,
    container: Option<&Arc<ContainerSnapshot>>,
) {
    let (Some(operation), Some(container)) = (operation, container) else { return };
    for step in [ContainerStep::Stop, ContainerStep::Remove] {
        tell(&**operation, step, pod, container).await;
    }
}

/// Tells of a pod's step that can't be refused any more.
pub(super) async fn tell_pod(operation: Option<&Arc<dyn Operation>>, step: PodStep, pod: &PodSnapshot) {
    let Some(operation) = operation.filter(|operation| !operation.is_idle()) else { return };
    if let Err(error) = operation.pod(step, pod).await {
        tracing::warn!(pod = pod.id, %error, "telling of a pod's step");
    }
}
