//! ListImages: all images, or the one that a filter names.

use tonic::Status;

use crate::proto::runtime::v1::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};

use super::{ImageFace, message};

pub(super) async fn call(face: &ImageFace, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
    Ok(ListImagesResponse { images: items(face, request.filter.as_ref()) })
}

/// The images. A filter that names none lets all through.
pub(super) fn items(face: &ImageFace, filter: Option<&ImageFilter>) -> Vec<Image> {
    let wanted = filter.and_then(|filter| filter.image.as_ref()).map(|spec| spec.image.as_str());
    match wanted {
        None | Some("") => face.images.list().iter().map(|image| message::image(image)).collect(),
        Some(reference) => face.images.get(reference).iter().map(|image| message::image(image)).collect(),
    }
}
