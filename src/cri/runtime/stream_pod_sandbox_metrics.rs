//! StreamPodSandboxMetrics: ListPodSandboxMetrics as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamPodSandboxMetricsRequest, StreamPodSandboxMetricsResponse};

use super::{RuntimeFace, list_pod_sandbox_metrics};

pub(super) async fn call(
    face: &RuntimeFace,
    _: StreamPodSandboxMetricsRequest,
) -> Result<Answers<StreamPodSandboxMetricsResponse>, Status> {
    let items = list_pod_sandbox_metrics::items(face).await;
    Ok(stream::chunks(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}
