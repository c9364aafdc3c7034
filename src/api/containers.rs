//! `berth.v1.Containers`: what people do with containers and the CRI has no words for. A file for each call.

mod commit;
mod files;
mod kill;
mod top;

use std::sync::Arc;

use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::container::ContainerSnapshot;
use crate::cri::status_of;
use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::{
    CommitRequest, CommitResponse, KillRequest, KillResponse, ReadFilesRequest, ReadFilesResponse,
    StatPathRequest, StatPathResponse, TopRequest, TopResponse, WriteFilesRequest, WriteFilesResponse,
    containers_server,
};

/// The service.
#[derive(Clone, Debug)]
pub struct ContainersFace {
    pods: Pods,
    images: Images,
}

impl ContainersFace {
    /// The service over these containers and images.
    pub fn new(pods: Pods, images: Images) -> Self {
        Self { pods, images }
    }

    fn container(&self, id: &str) -> Result<Arc<ContainerSnapshot>, Status> {
        let (_, container) = self.pods.find_container(id).map_err(status_of)?;
        Ok(container)
    }
}

#[tonic::async_trait]
impl containers_server::Containers for ContainersFace {
    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        commit::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn top(&self, request: Request<TopRequest>) -> Result<Response<TopResponse>, Status> {
        top::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<KillResponse>, Status> {
        kill::call(self, request.into_inner()).await.map(Response::new)
    }

    async fn stat_path(
        &self,
        request: Request<StatPathRequest>,
    ) -> Result<Response<StatPathResponse>, Status> {
        files::stat(self, request.into_inner()).await.map(Response::new)
    }

    type ReadFilesStream = BoxStream<'static, Result<ReadFilesResponse, Status>>;

    async fn read_files(
        &self,
        request: Request<ReadFilesRequest>,
    ) -> Result<Response<Self::ReadFilesStream>, Status> {
        files::read(self, request.into_inner()).await.map(Response::new)
    }

    async fn write_files(
        &self,
        request: Request<Streaming<WriteFilesRequest>>,
    ) -> Result<Response<WriteFilesResponse>, Status> {
        files::write(self, request.into_inner()).await.map(Response::new)
    }
}
