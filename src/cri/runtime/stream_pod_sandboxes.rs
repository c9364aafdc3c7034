//! StreamPodSandboxes: ListPodSandbox as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamPodSandboxesRequest, StreamPodSandboxesResponse};

use super::{RuntimeFace, list_pod_sandbox};

pub(super) async fn call(
    face: &RuntimeFace,
    request: StreamPodSandboxesRequest,
) -> Result<Answers<StreamPodSandboxesResponse>, Status> {
    let items = list_pod_sandbox::items(face, request.filter.as_ref());
    Ok(stream::chunks(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}
