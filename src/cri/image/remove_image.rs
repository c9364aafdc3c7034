//! RemoveImage: removes an image with all its names. One that is gone is removed.

use tonic::Status;

use crate::cri::{status, validate};
use crate::proto::runtime::v1::{RemoveImageRequest, RemoveImageResponse};

use super::ImageFace;

pub(super) async fn call(
    face: &ImageFace,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Status> {
    let reference = validate::image(request.image.as_ref(), "image")?;
    tracing::Span::current().record("image", reference);
    face.images.remove(reference).await.map_err(status::of)?;
    Ok(RemoveImageResponse {})
}
