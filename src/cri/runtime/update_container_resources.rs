//! UpdateContainerResources: new limits for a container, while it runs or before.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

use super::RuntimeFace;

/// Annotations are for runtimes that know them; none of ours does.
pub(super) async fn call(
    face: &RuntimeFace,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    face.pods.update_container(id, request.linux.unwrap_or_default()).await.map_err(status::of)?;
    Ok(UpdateContainerResourcesResponse {})
}
