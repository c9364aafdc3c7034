//! `berth.v1.Networks`: networks that people make, and who is attached to them. [`message`] reads requests and writes
//! answers.

mod message;
mod namespaces;

use std::collections::HashMap;
use std::sync::Arc;

use berth_cni::Controller;
use tonic::{Request, Response, Status};

use crate::cri::status_of;
use crate::error::chain;
use crate::pod::{PodSnapshot, Pods};
use crate::proto::berth::v1::{
    AttachNamespaceRequest, AttachNamespaceResponse, CheckNamespaceRequest, CheckNamespaceResponse,
    CollectNamespacesRequest, CollectNamespacesResponse, ConnectPodRequest, ConnectPodResponse,
    CreateNetworkRequest, CreateNetworkResponse, DetachNamespaceRequest, DetachNamespaceResponse,
    DisconnectPodRequest, DisconnectPodResponse, InspectNetworkRequest, InspectNetworkResponse,
    ListBlocksRequest, ListBlocksResponse, ListNetworksRequest, ListNetworksResponse, ListPoolsRequest,
    ListPoolsResponse, PruneNetworksRequest, PruneNetworksResponse, ReclaimBlocksRequest,
    ReclaimBlocksResponse, ReconcileNetworksRequest, ReconcileNetworksResponse, RemoveNetworkRequest,
    RemoveNetworkResponse, networks_server,
};

/// The service.
#[derive(Clone, Debug)]
pub struct NetworksFace {
    pods: Pods,
    networks: Controller,
}

impl NetworksFace {
    /// The service over these pods and their networks.
    pub fn new(pods: Pods, networks: Controller) -> Self {
        Self { pods, networks }
    }
}

#[tonic::async_trait]
impl networks_server::Networks for NetworksFace {
    async fn create_network(
        &self,
        request: Request<CreateNetworkRequest>,
    ) -> Result<Response<CreateNetworkResponse>, Status> {
        let request = message::network_request(request.into_inner())?;
        let made = self.networks.create(request).await.map_err(status_of)?;
        let status = self.networks.status(&made.name).map_err(status_of)?;
        Ok(Response::new(CreateNetworkResponse { network: Some(message::network(&status)) }))
    }

    async fn list_networks(
        &self,
        _: Request<ListNetworksRequest>,
    ) -> Result<Response<ListNetworksResponse>, Status> {
        let all = self.networks.networks();
        // One that is removed meanwhile is left out.
        let statuses = all.iter().filter_map(|network| self.networks.status(&network.name).ok());
        let networks = statuses.map(|status| message::network(&status)).collect();
        Ok(Response::new(ListNetworksResponse { networks }))
    }

    async fn inspect_network(
        &self,
        request: Request<InspectNetworkRequest>,
    ) -> Result<Response<InspectNetworkResponse>, Status> {
        let status = self.networks.status(&request.into_inner().name).map_err(status_of)?;
        let pods: HashMap<String, Arc<PodSnapshot>> =
            self.pods.pods().into_iter().map(|pod| (pod.id.clone(), pod)).collect();
        let endpoints = status
            .endpoints
            .iter()
            .map(|(id, endpoint)| message::endpoint(id, pods.get(id).map(AsRef::as_ref), endpoint));
        let remote = self.networks.remote_endpoints(&status.network.name).map_err(status_of)?;
        Ok(Response::new(InspectNetworkResponse {
            network: Some(message::network(&status)),
            endpoints: endpoints.collect(),
            remote_endpoints: remote.into_iter().map(message::remote_endpoint).collect(),
        }))
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Result<Response<RemoveNetworkResponse>, Status> {
        let name = request.into_inner().name;
        // For a person a name that means nothing is a mistake; for the room below it is done already.
        self.networks.status(&name).map_err(status_of)?;
        self.networks.delete_network(&name).await.map_err(status_of)?;
        Ok(Response::new(RemoveNetworkResponse {}))
    }

    async fn prune_networks(
        &self,
        _: Request<PruneNetworksRequest>,
    ) -> Result<Response<PruneNetworksResponse>, Status> {
        let (removed, errors) = self.networks.prune().await.map_err(status_of)?;
        let errors = errors.iter().map(|error| chain(error)).collect();
        Ok(Response::new(PruneNetworksResponse { removed, errors }))
    }

    async fn connect_pod(
        &self,
        request: Request<ConnectPodRequest>,
    ) -> Result<Response<ConnectPodResponse>, Status> {
        let request = request.into_inner();
        let options = message::endpoint_options(&request)?;
        self.pods.connect_network(&request.pod_id, &request.network, options).await.map_err(status_of)?;
        Ok(Response::new(ConnectPodResponse {}))
    }

    async fn disconnect_pod(
        &self,
        request: Request<DisconnectPodRequest>,
    ) -> Result<Response<DisconnectPodResponse>, Status> {
        let DisconnectPodRequest { pod_id, network } = request.into_inner();
        self.pods.disconnect_network(&pod_id, &network).await.map_err(status_of)?;
        Ok(Response::new(DisconnectPodResponse {}))
    }

    async fn attach_namespace(
        &self,
        request: Request<AttachNamespaceRequest>,
    ) -> Result<Response<AttachNamespaceResponse>, Status> {
        namespaces::attach(&self.networks, request.into_inner()).await.map(Response::new)
    }

    async fn detach_namespace(
        &self,
        request: Request<DetachNamespaceRequest>,
    ) -> Result<Response<DetachNamespaceResponse>, Status> {
        namespaces::detach(&self.networks, &request.into_inner().attachment).await.map(Response::new)
    }

    async fn check_namespace(
        &self,
        request: Request<CheckNamespaceRequest>,
    ) -> Result<Response<CheckNamespaceResponse>, Status> {
        namespaces::check(&self.networks, request.into_inner()).await.map(Response::new)
    }

    async fn collect_namespaces(
        &self,
        request: Request<CollectNamespacesRequest>,
    ) -> Result<Response<CollectNamespacesResponse>, Status> {
        namespaces::collect(&self.networks, request.into_inner()).await.map(Response::new)
    }

    async fn list_pools(&self, _: Request<ListPoolsRequest>) -> Result<Response<ListPoolsResponse>, Status> {
        let pools = self.networks.pools().await.map_err(status_of)?;
        Ok(Response::new(ListPoolsResponse { pools: pools.iter().map(message::pool).collect() }))
    }

    async fn list_blocks(
        &self,
        _: Request<ListBlocksRequest>,
    ) -> Result<Response<ListBlocksResponse>, Status> {
        let blocks = self.networks.blocks().into_iter().map(message::block).collect();
        Ok(Response::new(ListBlocksResponse { blocks }))
    }

    async fn reclaim_blocks(
        &self,
        request: Request<ReclaimBlocksRequest>,
    ) -> Result<Response<ReclaimBlocksResponse>, Status> {
        let ReclaimBlocksRequest { node_id, network } = request.into_inner();
        if node_id.is_empty() {
            return Err(Status::invalid_argument("node_id is missing"));
        }
        let network = Some(network.as_str()).filter(|network| !network.is_empty());
        let reclaimed = self.networks.reclaim(&node_id, network).await.map_err(status_of)?;
        let reclaimed = reclaimed.into_iter().map(message::reclaimed).collect();
        Ok(Response::new(ReclaimBlocksResponse { reclaimed }))
    }

    async fn reconcile_networks(
        &self,
        _: Request<ReconcileNetworksRequest>,
    ) -> Result<Response<ReconcileNetworksResponse>, Status> {
        let pods = self.pods.clone();
        let report = self.networks.reconcile_with(move || pods.ids()).await.map_err(status_of)?;
        Ok(Response::new(message::report(report)))
    }
}
