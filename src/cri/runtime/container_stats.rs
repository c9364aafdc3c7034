//! ContainerStats: what one container uses.

use tonic::Status;

use crate::cri::{status, trace, usage, validate};
use crate::proto::runtime::v1::{ContainerStatsRequest, ContainerStatsResponse};
use crate::stats::Depth;

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    let (_, container) = face.pods.find_container(id).map_err(status::of)?;
    let readings = face.stats.containers(vec![container], Depth::Usage).await;
    let stats = readings.first().map(|reading| usage::container(&face.stats, reading));
    Ok(ContainerStatsResponse { stats })
}
