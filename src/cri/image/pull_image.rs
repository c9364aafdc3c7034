//! PullImage: brings an image from its registry, and answers with its id.

use tonic::Status;

use crate::cri::{status, validate};
use crate::image::PullRequest;
use crate::proto::runtime::v1::{PullImageRequest, PullImageResponse};

use super::{ImageFace, message};

/// The reference is the image's id: what ImageStatus and ContainerStatus show as well, and what no later pull of the
/// same tag changes.
pub(super) async fn call(face: &ImageFace, request: PullImageRequest) -> Result<PullImageResponse, Status> {
    let reference = validate::image(request.image.as_ref(), "image")?.to_owned();
    tracing::Span::current().record("image", &reference);
    // request.sandbox_config would let a pull run in the pod's cgroup; nothing of a pull is the pod's here.
    let auth = request.auth.and_then(message::credentials);
    let image =
        face.images.pull(PullRequest { reference, auth, ..Default::default() }).await.map_err(status::of)?;
    Ok(PullImageResponse { image_ref: image.id.clone() })
}
