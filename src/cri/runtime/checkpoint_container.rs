//! CheckpointContainer: writes a running container as an archive; it runs on (KEP-2008).

use std::path::PathBuf;
use std::time::Duration;

use tonic::Status;

use crate::cri::{status, trace, validate};
use crate::proto::runtime::v1::{CheckpointContainerRequest, CheckpointContainerResponse};

use super::RuntimeFace;

/// Longest time that a request may allow criu, in seconds: a day.
const LONGEST: i64 = 24 * 3600;

pub(super) async fn call(
    face: &RuntimeFace,
    request: CheckpointContainerRequest,
) -> Result<CheckpointContainerResponse, Status> {
    let CheckpointContainerRequest { container_id, location, timeout } = request;
    let id = validate::id(&container_id, "container_id")?;
    trace::container(id);
    let limit = match u64::try_from(timeout) {
        Ok(0) => None,
        Ok(seconds) if timeout <= LONGEST => Some(Duration::from_secs(seconds)),
        _ => {
            return Err(Status::invalid_argument(format!(
                "timeout is 0 to {LONGEST} seconds, not {timeout}"
            )));
        }
    };
    face.pods.checkpoint_container(id, PathBuf::from(location), limit).await.map_err(status::of)?;
    Ok(CheckpointContainerResponse {})
}
