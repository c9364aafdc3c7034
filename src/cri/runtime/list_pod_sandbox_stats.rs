//! ListPodSandboxStats: what the pods use that a filter lets through. Pods that are not ready use nothing.

use tonic::Status;

use crate::cri::{filter, usage};
use crate::proto::runtime::v1::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStats, PodSandboxStatsFilter,
};
use crate::stats::Depth;

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Status> {
    Ok(ListPodSandboxStatsResponse { stats: items(face, request.filter.as_ref()).await })
}

/// The statistics, those of the oldest pod first.
pub(super) async fn items(
    face: &RuntimeFace,
    filter: Option<&PodSandboxStatsFilter>,
) -> Vec<PodSandboxStats> {
    let mut wanted = face.pods.pods();
    wanted.retain(|pod| pod.ready && filter::pod_stats(filter, pod));
    let readings = face.stats.pods(wanted, Depth::Usage).await;
    readings.iter().map(|reading| usage::pod(&face.stats, reading)).collect()
}
