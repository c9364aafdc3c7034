//! Tag and Untag: names of images that are here.

use tonic::Status;

use super::bounded;
use crate::cri::{image_message, status_of};
use crate::image::Images;
use crate::proto::berth::v1::{TagRequest, TagResponse, UntagRequest, UntagResponse};

pub(super) async fn tag(images: &Images, request: TagRequest) -> Result<TagResponse, Status> {
    let TagRequest { source, target } = request;
    bounded(&source)?;
    bounded(&target)?;
    let image = images.tag(&source, &target).await.map_err(status_of)?;
    Ok(TagResponse { image: Some(image_message::image(&image)) })
}

pub(super) async fn untag(images: &Images, request: UntagRequest) -> Result<UntagResponse, Status> {
    bounded(&request.reference)?;
    images.untag(&request.reference).await.map_err(status_of)?;
    Ok(UntagResponse {})
}
