//! StreamImages: ListImages as a stream (KEP-5825).

use tonic::Status;

use crate::cri::stream::{self, Answers};
use crate::proto::runtime::v1::{StreamImagesRequest, StreamImagesResponse};

use super::{ImageFace, list_images};

pub(super) async fn call(
    face: &ImageFace,
    request: StreamImagesRequest,
) -> Result<Answers<StreamImagesResponse>, Status> {
    let items = list_images::items(face, request.filter.as_ref());
    Ok(stream::chunks(items, |images| StreamImagesResponse { images }))
}
