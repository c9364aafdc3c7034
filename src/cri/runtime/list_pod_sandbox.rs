//! ListPodSandbox: the pods that a filter lets through.

use tonic::Status;

use crate::cri::{filter, message};
use crate::proto::runtime::v1::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    Ok(ListPodSandboxResponse { items: items(face, request.filter.as_ref()) })
}

/// The pods, newest first.
pub(super) fn items(face: &RuntimeFace, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    let mut items: Vec<PodSandbox> =
        face.pods.pods().iter().filter(|pod| filter::pod(filter, pod)).map(|pod| message::pod(pod)).collect();
    items.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    items
}
