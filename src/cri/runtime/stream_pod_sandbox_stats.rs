//! StreamPodSandboxStats: ListPodSandboxStats as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse};

use super::{RuntimeFace, list_pod_sandbox_stats};

pub(super) async fn call(
    face: &RuntimeFace,
    request: StreamPodSandboxStatsRequest,
) -> Result<Answers<StreamPodSandboxStatsResponse>, Status> {
    let items = list_pod_sandbox_stats::items(face, request.filter.as_ref()).await;
    Ok(stream::chunks(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}
