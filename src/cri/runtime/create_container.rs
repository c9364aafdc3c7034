//! CreateContainer: makes a container in a pod, without running its command.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{CreateContainerRequest, CreateContainerResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let pod_id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(pod_id);
    let config = validate::required(request.config, "config")?;
    validate::container_config(&config)?;
    if let Some(metadata) = &config.metadata {
        trace::name(&[&metadata.name]);
    }
    // request.sandbox_config repeats what RunPodSandbox was given: the pod's own record is what counts.
    let container_id = face.pods.create_container(pod_id, config).await.map_err(status::of)?;
    trace::container(&container_id);
    Ok(CreateContainerResponse { container_id })
}
