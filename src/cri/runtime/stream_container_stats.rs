//! StreamContainerStats: ListContainerStats as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamContainerStatsRequest, StreamContainerStatsResponse};

use super::{RuntimeFace, list_container_stats};

pub(super) async fn call(
    face: &RuntimeFace,
    request: StreamContainerStatsRequest,
) -> Result<Answers<StreamContainerStatsResponse>, Status> {
    let items = list_container_stats::items(face, request.filter.as_ref()).await;
    Ok(stream::chunks(items, |container_stats| StreamContainerStatsResponse { container_stats }))
}
