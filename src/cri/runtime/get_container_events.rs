//! GetContainerEvents: what happens to pods and containers, from now on.
//!
//! A pod sandbox is told of as if it were a container with the pod's id, as containerd does it: the kubelet learns of pods
//! that way. Every event has the statuses it led to, so that the kubelet need not ask.

use futures::StreamExt;
use tonic::Status;

use crate::cri::stream::Answers;
use crate::cri::{message, status};
use crate::events;
use crate::pod::{EventKind, PodEvent};
use crate::proto::runtime::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};

use super::{RuntimeFace, container_status};

pub(super) async fn call(
    face: &RuntimeFace,
    _: GetEventsRequest,
) -> Result<Answers<ContainerEventResponse>, Status> {
    let (subscription, stopping) = (events::subscribe(&face.pods), face.stopping.clone());
    let face = face.clone();
    let events =
        subscription.map(move |event| event.map(|event| response(&face, &event)).map_err(status::of));
    // The daemon's stop must not wait for those who listen.
    let end = futures::stream::once(async { Err(status::of(events::Error::ShuttingDown)) });
    Ok(Box::pin(events.take_until(async move { stopping.cancelled().await }).chain(end)))
}

fn response(face: &RuntimeFace, event: &PodEvent) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    let containers = event.pod.containers.iter();
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(message::pod_status(&event.pod)),
        containers_statuses: containers.map(|container| container_status::message(face, container)).collect(),
    }
}
