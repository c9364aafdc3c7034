//! Kill: a signal for a container.

use tonic::Status;

use super::ContainersFace;
use crate::container::spec::signal;
use crate::cri::status_of;
use crate::proto::berth::v1::{KillRequest, KillResponse};

pub(super) async fn call(face: &ContainersFace, request: KillRequest) -> Result<KillResponse, Status> {
    let container = face.container(&request.container_id)?;
    let signal = match request.signal.as_str() {
        "" => libc::SIGKILL,
        text => signal::parse(text).ok_or_else(|| no_signal(text))?,
    };
    face.pods.signal_container(&container.id, signal).await.map_err(status_of)?;
    Ok(KillResponse {})
}

fn no_signal(text: &str) -> Status {
    let text: String = text.chars().take(40).collect();
    Status::invalid_argument(format!(
        "{text:?} is no signal: write a name or a number, as in TERM, SIGHUP, RTMIN+3 or 9"
    ))
}
