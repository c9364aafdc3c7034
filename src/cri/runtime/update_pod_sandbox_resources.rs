//! UpdatePodSandboxResources: the kubelet tells that it has given a pod new resources (KEP-1287).

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    face.pods.update_pod_sandbox(id, request.overhead, request.resources).await.map_err(status::of)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
