//! ImageStatus: one image. One that is not there is no error: the answer is empty.

use std::collections::HashMap;

use tonic::Status;

use crate::cri::{info, validate};
use crate::proto::runtime::v1::{ImageStatusRequest, ImageStatusResponse};

use super::{ImageFace, message};

pub(super) async fn call(
    face: &ImageFace,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, Status> {
    let reference = validate::image(request.image.as_ref(), "image")?;
    let Some(image) = face.images.get(reference) else { return Ok(ImageStatusResponse::default()) };
    let info = if request.verbose {
        let spec: serde_json::Value = serde_json::from_str(&image.raw_config).unwrap_or_default();
        info::named("info", serde_json::json!({ "imageSpec": spec }))
    } else {
        HashMap::new()
    };
    Ok(ImageStatusResponse { image: Some(message::image(&image)), info })
}
