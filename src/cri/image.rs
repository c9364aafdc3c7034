//! ImageService: images and their file systems. Each call is a file below.

mod image_fs_info;
mod image_status;
mod list_images;
pub(crate) mod message;
mod pull_image;
mod remove_image;
mod stream_images;

use tonic::{Request, Response, Status};

use crate::image::Images;
use crate::proto::runtime::v1::image_service_server::ImageService;
use crate::proto::runtime::v1::*;

use super::stream::Answers;

/// Answers ImageService.
#[derive(Clone, Debug)]
pub struct ImageFace {
    images: Images,
}

impl ImageFace {
    /// A face for this room.
    pub fn new(images: Images) -> Self {
        Self { images }
    }
}

#[tonic::async_trait]
impl ImageService for ImageFace {
    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        list_images::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        stream_images::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        image_status::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        pull_image::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        remove_image::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(
        &self,
        request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        image_fs_info::call(self, request.into_inner()).await.map(Response::new)
    }
}
