//! ListPodSandboxMetrics: the metrics of all pods that are ready.

use tonic::Status;

use crate::cri::metrics;
use crate::proto::metrics::PodSandboxMetrics;
use crate::proto::runtime::v1::{ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse};
use crate::stats::Depth;

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    _: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Status> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: items(face).await })
}

/// The metrics, those of the oldest pod first.
pub(super) async fn items(face: &RuntimeFace) -> Vec<PodSandboxMetrics> {
    let mut wanted = face.pods.pods();
    wanted.retain(|pod| pod.ready);
    let disk = face.stats.disk().await;
    let readings = face.stats.pods(wanted, Depth::Detail).await;
    readings.iter().map(|reading| metrics::pod(&face.stats, reading, &disk)).collect()
}
