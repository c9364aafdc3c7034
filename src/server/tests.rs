//! The server on a real socket, spoken to with the client that others generated from the published proto.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::*;
use crate::cri::fixtures;

struct Daemon {
    channel: Channel,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), Error>>,
    _socket: Socket,
    _directory: tempfile::TempDir,
}

impl Daemon {
    async fn start(max_message_size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut grpc = Source { state: Some(directory.path().join("state")), ..Source::default() }
            .load()
            .unwrap()
            .config
            .grpc;
        grpc.max_message_size = max_message_size;
        let (socket, listener) = Socket::listen(&grpc.address, 0).unwrap();
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let rooms = fixtures::rooms(directory.path());
        let scrape: Scrape = std::sync::Arc::new(|| Ok(String::new()));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let address = grpc.address.clone();
        let serving =
            tokio::spawn(async move { serve(&grpc, rooms, (metrics, scrape), listener, stopped).await });
        let connect = tower::service_fn(move |_: Uri| {
            let address = address.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(address).await?)) }
        });
        let channel = Endpoint::from_static("http://unused").connect_with_connector(connect).await.unwrap();
        Self { channel, stop, serving, _socket: socket, _directory: directory }
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }
}

#[tokio::test]
async fn version_and_status() {
    let daemon = Daemon::start(1 << 20).await;
    let mut client = daemon.runtime();
    let version = client.version(VersionRequest { version: String::new() }).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("berth", "v1"));
    assert_eq!((version.version.as_str(), version.runtime_version.as_str()), ("0.1.0", "1.2.3"));

    let status = client.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let names: Vec<&str> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(names, ["RuntimeReady", "NetworkReady"]);
    let handlers: Vec<(&str, bool)> = status
        .runtime_handlers
        .iter()
        .map(|handler| (handler.name.as_str(), handler.features.as_ref().unwrap().user_namespaces))
        .collect();
    assert_eq!(handlers, [("", true), ("berth", true), ("runc", false)]);
    assert!(status.features.unwrap().supplemental_groups_policy);
    for document in ["config", "version", "network", "checkpoint"] {
        serde_json::from_str::<serde_json::Value>(&status.info[document]).unwrap();
    }
    let brief = client.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(brief.info.is_empty());

    let config = client.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver, i32::from(CgroupDriver::Cgroupfs));
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let daemon = Daemon::start(1 << 20).await;
    // Too new for the others' client.
    use crate::proto::runtime::v1::{self as own, runtime_service_client};
    let mut client = runtime_service_client::RuntimeServiceClient::new(daemon.channel.clone());
    let status = client.checkpoint_pod(own::CheckpointPodRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "CheckpointPod is not implemented"));
}

#[tokio::test]
async fn malformed_requests_name_the_field() {
    let daemon = Daemon::start(1 << 20).await;
    let mut client = daemon.runtime();
    let status = client.run_pod_sandbox(RunPodSandboxRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "config is missing"));
    let config = Some(PodSandboxConfig::default());
    let request = RunPodSandboxRequest { config, runtime_handler: String::new() };
    let status = client.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(status.message(), "config.metadata is missing");
    let status = client.stop_container(StopContainerRequest::default()).await.unwrap_err();
    assert_eq!(status.message(), "container_id is missing");
    let status = daemon.images().pull_image(PullImageRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "image is missing"));
}

#[tokio::test]
async fn unknown_things_are_named() {
    let daemon = Daemon::start(1 << 20).await;
    let mut client = daemon.runtime();
    let request = ContainerStatusRequest { container_id: "beef".into(), verbose: true };
    let status = client.container_status(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "container \"beef\" not found"));
    let request = PodSandboxStatusRequest { pod_sandbox_id: "beef".into(), verbose: false };
    let status = client.pod_sandbox_status(request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "pod sandbox \"beef\" not found"));
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: "beef".into() }).await.unwrap();
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: "beef".into() }).await.unwrap();
    client.stop_container(StopContainerRequest { container_id: "beef".into(), timeout: 1 }).await.unwrap();
    client.remove_container(RemoveContainerRequest { container_id: "beef".into() }).await.unwrap();
    let image = Some(ImageSpec { image: "docker.io/library/none:1".into(), ..Default::default() });
    let status = daemon.images().image_status(ImageStatusRequest { image, verbose: false }).await.unwrap();
    assert!(status.into_inner().image.is_none());
}

#[tokio::test]
async fn empty_lists_and_streams() {
    let daemon = Daemon::start(1 << 20).await;
    let mut client = daemon.runtime();
    let pods = client.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await.unwrap().into_inner();
    assert!(pods.items.is_empty());
    let containers =
        client.list_containers(ListContainersRequest { filter: None }).await.unwrap().into_inner();
    assert!(containers.containers.is_empty());
    let images = daemon.images().list_images(ListImagesRequest { filter: None }).await.unwrap().into_inner();
    assert!(images.images.is_empty());
}

#[tokio::test]
async fn large_requests_are_refused() {
    let daemon = Daemon::start(64 << 10).await;
    // The second is more than a connection's window: it is refused while the client still sends.
    for length in [100 << 10, 20 << 20] {
        for _ in 0..10 {
            let request = VersionRequest { version: "a".repeat(length) };
            let status = daemon.runtime().version(request).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            assert!(status.message().contains("longer than 65536"), "{status:?}");
        }
    }
    // The connection is good for others.
    daemon.runtime().version(VersionRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_the_server() {
    let daemon = Daemon::start(1 << 20).await;
    daemon.runtime().version(VersionRequest::default()).await.unwrap();
    daemon.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), daemon.serving).await;
    ended.expect("in time").unwrap().unwrap();
}

/// tonic has timers of its own for the client's deadline, in the server and in the client; ours must be the first.
#[tokio::test]
async fn deadlines_of_clients_end_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let bounds = Bounds { deadline: Duration::from_secs(9), changes: 9, reads: 9 };
    let hang = tower::service_fn(|_: http::Request<tonic::body::Body>| {
        std::future::pending::<Result<http::Response<tonic::body::Body>, std::convert::Infallible>>()
    });
    let server = tonic::transport::Server::builder()
        .layer(stack::layers(bounds, Metrics::new(&Registry::new()).unwrap()))
        .layer(tower::layer::layer_fn(move |_| hang))
        .add_service(ImageServiceServer::new(ImageFace::new(fixtures::rooms(directory.path()).images)));
    let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let connect = {
        let path = path.clone();
        tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        })
    };
    let channel = Endpoint::from_static("http://unused").connect_with_connector(connect).await.unwrap();
    let mut request = tonic::Request::new(ImageFsInfoRequest {});
    request.set_timeout(Duration::from_secs(2));
    let status = ImageServiceClient::new(channel).image_fs_info(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    serving.abort();
}
