//! StopPodSandbox: ends what runs in a pod and frees its network. A pod that is gone is stopped.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{StopPodSandboxRequest, StopPodSandboxResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    face.pods.stop_pod_sandbox(id).await.map_err(status::of)?;
    Ok(StopPodSandboxResponse {})
}
