//! RemoveContainer: removes a container, ending it first if it runs. A container that is gone is removed.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{RemoveContainerRequest, RemoveContainerResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    face.pods.remove_container(id).await.map_err(status::of)?;
    Ok(RemoveContainerResponse {})
}
