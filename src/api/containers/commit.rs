//! Commit: a container as a new image.

use tonic::Status;

use super::ContainersFace;
use crate::cri::{image_message, status_of};
use crate::image;
use crate::proto::berth::v1::{CommitRequest, CommitResponse};

/// Most changes in one call.
const CHANGES: usize = 256;

pub(super) async fn call(face: &ContainersFace, request: CommitRequest) -> Result<CommitResponse, Status> {
    let CommitRequest { container_id, reference, changes, author, message } = request;
    if changes.len() > CHANGES {
        return Err(Status::invalid_argument(format!("at most {CHANGES} changes")));
    }
    let container = face.container(&container_id)?;
    let request = image::CommitRequest {
        base: container.image_id.clone(),
        upper: container.upper.clone(),
        reference,
        changes,
        author,
        message,
    };
    let image = face.images.commit_layer(request).await.map_err(status_of)?;
    Ok(CommitResponse { image: Some(image_message::image(&image)) })
}
