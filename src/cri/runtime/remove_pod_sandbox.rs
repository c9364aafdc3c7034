//! RemovePodSandbox: removes a pod and its containers. A pod that is gone is removed.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    face.pods.remove_pod_sandbox(id).await.map_err(status::of)?;
    Ok(RemovePodSandboxResponse {})
}
