//! ReopenContainerLog: goes on in a new log file, after the kubelet has moved the old one away.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{ReopenContainerLogRequest, ReopenContainerLogResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    face.pods.reopen_container_log(id).await.map_err(status::of)?;
    Ok(ReopenContainerLogResponse {})
}
