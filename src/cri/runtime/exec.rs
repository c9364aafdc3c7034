//! Exec: prepares a session in which a command runs with a client at its streams; answers where to connect.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{ExecRequest, ExecResponse};
use crate::streaming::Streams;

use super::RuntimeFace;

pub(super) async fn call(face: &RuntimeFace, request: ExecRequest) -> Result<ExecResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    validate::command(&request.cmd)?;
    let ExecRequest { stdin, stdout, stderr, tty, .. } = request;
    let streams = Streams { stdin, stdout, stderr, tty };
    let url = face.streaming.exec(id, request.cmd, streams).map_err(status::of)?;
    Ok(ExecResponse { url })
}
