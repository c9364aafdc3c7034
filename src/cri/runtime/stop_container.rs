//! StopContainer: asks a container to end, and kills it after the grace period. One that is gone is stopped.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{StopContainerRequest, StopContainerResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    face.pods.stop_container(id, validate::grace(request.timeout)).await.map_err(status::of)?;
    Ok(StopContainerResponse {})
}
