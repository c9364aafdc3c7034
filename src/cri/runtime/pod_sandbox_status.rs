//! PodSandboxStatus: all about one pod, and the statuses of its containers.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::Status;

use crate::cri::{info, message, status, trace, validate};
use crate::proto::runtime::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};

use super::{RuntimeFace, container_status};

pub(super) async fn call(
    face: &RuntimeFace,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let id = validate::id(&request.pod_sandbox_id, "pod_sandbox_id")?;
    trace::pod(id);
    let pod = face.pods.find_pod(id).map_err(status::of)?;
    let info = if request.verbose { info::named("info", info::pod(&pod)) } else { HashMap::new() };
    let containers = pod.containers.iter().map(|container| container_status::message(face, container));
    Ok(PodSandboxStatusResponse {
        status: Some(message::pod_status(&pod)),
        info,
        containers_statuses: containers.collect(),
        timestamp: now(),
    })
}

/// Nanoseconds since the Unix epoch: when the snapshot was read.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
