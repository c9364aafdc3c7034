//! RuntimeService: pods, containers and the runtime itself. Each call is a file below.

mod attach;
mod checkpoint_container;
mod container_stats;
mod container_status;
mod create_container;
mod exec;
mod exec_sync;
mod get_container_events;
mod list_container_stats;
mod list_containers;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod remove_container;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_config;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod stream_container_stats;
mod stream_containers;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::image::Images;
use crate::pod::Pods;
use crate::proto::runtime::v1::runtime_service_server::RuntimeService;
use crate::proto::runtime::v1::*;
use crate::stats::Stats;
use crate::streaming::Streaming;

use super::facts::Facts;
use super::status::unimplemented;
use super::stream::Answers;

/// Answers RuntimeService.
#[derive(Clone, Debug)]
pub struct RuntimeFace {
    pods: Pods,
    images: Images,
    facts: Arc<Facts>,
    stats: Stats,
    streaming: Streaming,
    /// The daemon is about to end.
    stopping: CancellationToken,
}

impl RuntimeFace {
    /// A face for these rooms.
    pub fn new(
        pods: Pods,
        images: Images,
        facts: Arc<Facts>,
        stats: Stats,
        streaming: Streaming,
        stopping: CancellationToken,
    ) -> Self {
        Self { pods, images, facts, stats, streaming, stopping }
    }
}

/// Writes the service: each call goes to the file of its name, or is not built and says so.
macro_rules! service {
    (
        built { $($built:ident($request:ty) -> $response:ty;)* }
        streams { $($stream:ident($stream_request:ty) -> $item:ty as $stream_type:ident;)* }
        unbuilt { $($unbuilt:ident($unbuilt_request:ty) -> $unbuilt_response:ty, $name:literal;)* }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for RuntimeFace {
            $(
                async fn $built(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    $built::call(self, request.into_inner()).await.map(Response::new)
                }
            )*
            $(
                type $stream_type = Answers<$item>;
                async fn $stream(
                    &self,
                    request: Request<$stream_request>,
                ) -> Result<Response<Answers<$item>>, Status> {
                    $stream::call(self, request.into_inner()).await.map(Response::new)
                }
            )*
            $(
                async fn $unbuilt(
                    &self,
                    _: Request<$unbuilt_request>,
                ) -> Result<Response<$unbuilt_response>, Status> {
                    Err(unimplemented($name))
                }
            )*
        }
    };
}

service! {
    built {
        version(VersionRequest) -> VersionResponse;
        status(StatusRequest) -> StatusResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        start_container(StartContainerRequest) -> StartContainerResponse;
        stop_container(StopContainerRequest) -> StopContainerResponse;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        list_containers(ListContainersRequest) -> ListContainersResponse;
        exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
    }
    streams {
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse as StreamPodSandboxesStream;
        stream_containers(StreamContainersRequest) -> StreamContainersResponse as StreamContainersStream;
        stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse as StreamContainerStatsStream;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse as StreamPodSandboxStatsStream;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse as StreamPodSandboxMetricsStream;
        get_container_events(GetEventsRequest) -> ContainerEventResponse as GetContainerEventsStream;
    }
    unbuilt {
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse, "CheckpointPod";
        restore_pod(RestorePodRequest) -> RestorePodResponse, "RestorePod";
    }
}
