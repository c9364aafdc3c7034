//! `berth.v1.Images`: pulls that tell how far they are, archives in and out. A file for each call; [`super::stream`] ties work
//! to the stream that reports on it, [`message`] writes the answers.

mod export;
mod import;
mod message;
mod pull;
mod push;
mod tag;

use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::images_server;
use crate::proto::berth::v1::{
    CheckCredentialsRequest, CheckCredentialsResponse, ExportRequest, ExportResponse, ImportRequest,
    ImportResponse, PullRequest, PullResponse, PushRequest, PushResponse, TagRequest, TagResponse,
    UntagRequest, UntagResponse, UsageRequest, UsageResponse,
};

/// Bytes of an archive in one message at most, as the protocol says.
const LARGEST_CHUNK: usize = 1 << 20;
/// Longest reference: registries take names of 255 and tags of 128 characters.
const LONGEST_REFERENCE: usize = 4096;

/// The service.
#[derive(Clone, Debug)]
pub struct ImagesFace {
    images: Images,
    pods: Pods,
}

impl ImagesFace {
    /// The service over these images, and the pods that use them.
    pub fn new(images: Images, pods: Pods) -> Self {
        Self { images, pods }
    }
}

/// A reference that is not worth looking at.
fn bounded(reference: &str) -> Result<(), Status> {
    if reference.is_empty() || reference.len() > LONGEST_REFERENCE {
        return Err(Status::invalid_argument(format!("reference must have 1 to {LONGEST_REFERENCE} bytes")));
    }
    Ok(())
}

#[tonic::async_trait]
impl images_server::Images for ImagesFace {
    type PullStream = BoxStream<'static, Result<PullResponse, Status>>;
    type PushStream = BoxStream<'static, Result<PushResponse, Status>>;
    type ExportStream = BoxStream<'static, Result<ExportResponse, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        pull::call(self.images.clone(), request.into_inner()).map(Response::new)
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        tag::tag(&self.images, request.into_inner()).await.map(Response::new)
    }

    async fn untag(&self, request: Request<UntagRequest>) -> Result<Response<UntagResponse>, Status> {
        tag::untag(&self.images, request.into_inner()).await.map(Response::new)
    }

    async fn push(&self, request: Request<PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        push::call(self.images.clone(), request.into_inner()).map(Response::new)
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let pods = self.pods.pods();
        let containers = pods.iter().flat_map(|pod| &pod.containers);
        let used = containers.map(|container| container.image_id.clone()).collect();
        Ok(Response::new(message::usage(self.images.usage(&used))))
    }

    async fn check_credentials(
        &self,
        request: Request<CheckCredentialsRequest>,
    ) -> Result<Response<CheckCredentialsResponse>, Status> {
        push::check_credentials(&self.images, request.into_inner()).await.map(Response::new)
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
