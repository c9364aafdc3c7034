//! ListContainerStats: what the containers use that a filter lets through, ended ones among them.

use tonic::Status;

use crate::cri::{filter, usage};
use crate::proto::runtime::v1::{
    ContainerStats, ContainerStatsFilter, ListContainerStatsRequest, ListContainerStatsResponse,
};
use crate::stats::Depth;

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Status> {
    Ok(ListContainerStatsResponse { stats: items(face, request.filter.as_ref()).await })
}

/// The statistics, those of the oldest pod first.
pub(super) async fn items(face: &RuntimeFace, filter: Option<&ContainerStatsFilter>) -> Vec<ContainerStats> {
    let pods = face.pods.pods();
    let wanted = pods
        .iter()
        .flat_map(|pod| &pod.containers)
        .filter(|container| filter::container_stats(filter, container))
        .cloned()
        .collect();
    let readings = face.stats.containers(wanted, Depth::Usage).await;
    readings.iter().map(|reading| usage::container(&face.stats, reading)).collect()
}
