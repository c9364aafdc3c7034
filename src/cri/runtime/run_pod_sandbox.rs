//! RunPodSandbox: makes a pod and joins it to its networks.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{RunPodSandboxRequest, RunPodSandboxResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Status> {
    let config = validate::required(request.config, "config")?;
    validate::pod_config(&config)?;
    if let Some(metadata) = &config.metadata {
        trace::name(&[&metadata.namespace, &metadata.name]);
    }
    let pod_sandbox_id =
        face.pods.run_pod_sandbox(config, request.runtime_handler).await.map_err(status::of)?;
    trace::pod(&pod_sandbox_id);
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
