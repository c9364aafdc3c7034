//! ExecSync: runs a command in a container and brings its output and exit code.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{ExecSyncRequest, ExecSyncResponse};

use super::RuntimeFace;

pub(super) async fn call(face: &RuntimeFace, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    validate::command(&request.cmd)?;
    let limit = validate::limit(request.timeout, "timeout")?;
    let output = face.pods.exec_sync(id, request.cmd, limit).await.map_err(status::of)?;
    Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
