//! ListContainers: the containers that a filter lets through.

use tonic::Status;

use crate::cri::{filter, message};
use crate::proto::runtime::v1::{Container, ContainerFilter, ListContainersRequest, ListContainersResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    Ok(ListContainersResponse { containers: items(face, request.filter.as_ref()) })
}

/// The containers, newest first.
pub(super) fn items(face: &RuntimeFace, filter: Option<&ContainerFilter>) -> Vec<Container> {
    let pods = face.pods.pods();
    let mut items: Vec<Container> = pods
        .iter()
        .flat_map(|pod| &pod.containers)
        .filter(|container| filter::container(filter, container))
        .map(|container| message::container(container))
        .collect();
    items.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    items
}
