//! Attach: prepares a session with a client at the streams of a running container; answers where to connect.

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{AttachRequest, AttachResponse};
use crate::streaming::Streams;

use super::RuntimeFace;

pub(super) async fn call(face: &RuntimeFace, request: AttachRequest) -> Result<AttachResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    let AttachRequest { stdin, stdout, stderr, tty, .. } = request;
    let url = face.streaming.attach(id, Streams { stdin, stdout, stderr, tty }).map_err(status::of)?;
    Ok(AttachResponse { url })
}
