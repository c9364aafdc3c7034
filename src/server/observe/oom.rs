//! Counts containers that the kernel ended for their memory.

use futures::StreamExt;
use prometheus::{IntCounter, Registry};

use crate::container::ContainerState;
use crate::pod::{EventKind, PodEvent, Pods};

/// Registers the counter.
pub(super) fn counter(registry: &Registry) -> Result<IntCounter, prometheus::Error> {
    let counter =
        IntCounter::new("berth_cri_containers_oom_count_total", "Containers that ended for want of memory.")?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

/// Counts until the daemon ends.
pub(super) async fn count(pods: Pods, counter: IntCounter) {
    loop {
        let events = crate::events::subscribe(&pods);
        futures::pin_mut!(events);
        loop {
            match events.next().await {
                Some(Ok(event)) if is_oom(&event) => counter.inc(),
                Some(Ok(_)) => {}
                // Some were missed under great load: on with those to come.
                Some(Err(crate::events::Error::FellBehind { .. })) => break,
                Some(Err(crate::events::Error::ShuttingDown)) | None => return,
            }
        }
    }
}

fn is_oom(event: &PodEvent) -> bool {
    event.kind == EventKind::Stopped
        && event.pod.containers.iter().any(|container| {
            container.id == event.id
                && matches!(&container.state, ContainerState::Exited { reason, .. } if reason == "OOMKilled")
        })
}
