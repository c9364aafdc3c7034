//! ContainerStatus: all about one container.

use std::collections::HashMap;

use tonic::Status;

use crate::container::ContainerSnapshot;
use crate::cri::{info, message, status, trace, validate};
use crate::proto::runtime::v1::{ContainerStatus, ContainerStatusRequest, ContainerStatusResponse};

use super::RuntimeFace;

pub(super) async fn call(
    face: &RuntimeFace,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let id = validate::id(&request.container_id, "container_id")?;
    trace::container(id);
    let (pod, container) = face.pods.find_container(id).map_err(status::of)?;
    let info = if request.verbose {
        info::named("info", info::container(&container, &pod, spec(&container).await))
    } else {
        HashMap::new()
    };
    Ok(ContainerStatusResponse { status: Some(self::message(face, &container)), info })
}

/// The status with the tags that the image has now.
pub(super) fn message(face: &RuntimeFace, container: &ContainerSnapshot) -> ContainerStatus {
    let image = face.images.get(&container.image_id);
    let tags = image.as_deref().map(|image| image.repo_tags.as_slice()).unwrap_or_default();
    message::container_status(container, tags)
}

/// The OCI specification from the bundle; null once that is gone.
async fn spec(container: &ContainerSnapshot) -> serde_json::Value {
    let text = tokio::fs::read(container.bundle.join("config.json")).await.unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}
