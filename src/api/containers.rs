//! `berth.v1.Containers`: what people do with containers and the CRI has no words for. A file for each call.

mod commit;
mod top;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::container::ContainerSnapshot;
use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::{CommitRequest, CommitResponse, TopRequest, TopResponse, containers_server};

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
        match self.pods.container(id) {
            Some((_, container)) => Ok(container),
            None => Err(Status::not_found(format!("container {id:?} not found"))),
        }
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
}
