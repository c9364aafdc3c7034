//! `berth.v1.Images`: pulls that tell how far they are, archives in and out. A file for each call; [`stream`] ties work
//! to the stream that reports on it, [`message`] writes the answers.

mod export;
mod import;
mod message;
mod pull;
mod stream;

use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::image::Images;
use crate::proto::berth::v1::images_server;
use crate::proto::berth::v1::{
    ExportRequest, ExportResponse, ImportRequest, ImportResponse, PullRequest, PullResponse,
};

/// Bytes of an archive in one message at most, as the protocol says.
const LARGEST_CHUNK: usize = 1 << 20;

/// The service.
#[derive(Clone, Debug)]
pub struct ImagesFace {
    images: Images,
}

impl ImagesFace {
    /// The service over these images.
    pub fn new(images: Images) -> Self {
        Self { images }
    }
}

#[tonic::async_trait]
impl images_server::Images for ImagesFace {
    type PullStream = BoxStream<'static, Result<PullResponse, Status>>;
    type ExportStream = BoxStream<'static, Result<ExportResponse, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        pull::call(self.images.clone(), request.into_inner()).map(Response::new)
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        import::call(&self.images, request.into_inner()).await.map(Response::new)
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        export::call(self.images.clone(), request.into_inner()).map(Response::new)
    }
}
