//! ImageFsInfo: how much of which file system images and containers use.

use tonic::Status;

use crate::proto::runtime::v1::{ImageFsInfoRequest, ImageFsInfoResponse};

use super::{ImageFace, message};

pub(super) async fn call(face: &ImageFace, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
    let usage = message::file_system(&face.images.fs_info());
    // Both lists must be there: the kubelet takes an empty one for a broken runtime. Writable layers live under the
    // same root as images.
    Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
