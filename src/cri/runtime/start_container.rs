//! StartContainer: runs the command of a container.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{StartContainerRequest, StartContainerResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    face.pods.start_container(id).await.map_err(status::of)?;
    Ok(StartContainerResponse {})
}
