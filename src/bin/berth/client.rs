//! The connection to the daemon, and the calls that several commands make.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::berth::v1::containers_client::ContainersClient;
use berth::proto::berth::v1::debug_client::DebugClient;
use berth::proto::berth::v1::images_client::ImagesClient;
use berth::proto::berth::v1::networks_client::NetworksClient;
use berth::proto::berth::v1::volumes_client::VolumesClient;
use berth::proto::runtime::v1::image_service_client::ImageServiceClient;
use berth::proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use berth::proto::runtime::v1::{
    Container, ContainerStatusRequest, ContainerStatusResponse, Image, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RemovePodSandboxRequest, StopContainerRequest, StopPodSandboxRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::failure::Answer;

/// The socket accepts at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// ExecSync answers with up to 16 MiB of each stream, lists with about as much.
const LARGEST_ANSWER_BYTES: usize = 64 << 20;

/// A connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// CRI: pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// CRI: images.
    pub images: ImageServiceClient<Channel>,
    /// Berth's own: images with progress, archives.
    pub transfer: ImagesClient<Channel>,
    /// Berth's own: what the CRI has no words for.
    pub own_containers: ContainersClient<Channel>,
    /// Berth's own: volumes.
    pub volumes: VolumesClient<Channel>,
    /// Berth's own: networks.
    pub networks: NetworksClient<Channel>,
    /// Berth's own: how the daemon itself is.
    pub debug: DebugClient<Channel>,
}

impl Client {
    /// Connects to the daemon's socket.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let path = socket_path(address)?;
        let connector = tower::service_fn({
            let path = path.clone();
            move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }
        });
        // The host part is never resolved; it becomes the `:authority` of the calls.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|error| explain(&path, error.into()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(LARGEST_ANSWER_BYTES),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES),
            transfer: ImagesClient::new(channel.clone()),
            own_containers: ContainersClient::new(channel.clone()),
            volumes: VolumesClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES),
            networks: NetworksClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER_BYTES),
            debug: DebugClient::new(channel).max_decoding_message_size(LARGEST_ANSWER_BYTES),
        })
    }

    /// All containers.
    pub(crate) async fn containers(&mut self) -> Result<Vec<Container>> {
        let list = self.runtime.list_containers(ListContainersRequest { filter: None }).await.answer();
        Ok(list.context("listing containers")?.containers)
    }

    /// All pods.
    pub(crate) async fn pods(&mut self) -> Result<Vec<PodSandbox>> {
        let list = self.runtime.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await.answer();
        Ok(list.context("listing pods")?.items)
    }

    /// A container's status, by its full id.
    pub(crate) async fn container_status(
        &mut self,
        id: &str,
        verbose: bool,
    ) -> Result<ContainerStatusResponse> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose };
        Ok(self.runtime.container_status(request).await.answer()?)
    }

    /// A pod's status, by its full id.
    pub(crate) async fn pod_status(&mut self, id: &str, verbose: bool) -> Result<PodSandboxStatusResponse> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        Ok(self.runtime.pod_sandbox_status(request).await.answer()?)
    }

    /// An image's status by name, id or prefix of one. Its `image` is absent when there is none.
    pub(crate) async fn image_status(&mut self, image: &str, verbose: bool) -> Result<ImageStatusResponse> {
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose };
        Ok(self.images.image_status(request).await.answer()?)
    }

    /// An image by name, id or prefix of one.
    pub(crate) async fn image(&mut self, image: &str) -> Result<Option<Image>> {
        Ok(self.image_status(image, false).await.with_context(|| format!("looking for image {image}"))?.image)
    }

    /// Stops a container; it has `grace` to end by itself. One that ended is no error.
    pub(crate) async fn stop_container(&mut self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.stop_container(request).await.answer()?;
        Ok(())
    }

    /// Stops a pod: kills what runs in it, and takes its network down.
    pub(crate) async fn stop_pod(&mut self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.answer()?;
        Ok(())
    }

    /// Removes a pod and its containers.
    pub(crate) async fn remove_pod(&mut self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.answer()?;
        Ok(())
    }
}

/// An image as requests name it.
pub(crate) fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..ImageSpec::default() }
}

/// `--address` as a path: the forms that crictl knows are understood.
pub(crate) fn socket_path(address: &str) -> Result<PathBuf> {
    let path = match address.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, rest)) if rest.starts_with("//") => {
            bail!("--address {address}: berthd listens on a Unix socket, not on {scheme}: give its path")
        }
        _ => address,
    };
    if path.is_empty() {
        bail!("--address is empty: give the path of berthd's socket, or leave it out");
    }
    Ok(PathBuf::from(path))
}

/// Why the socket could not be reached, and what to do.
fn explain(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let socket = path.display();
    match kind {
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => anyhow!(
            "nothing listens on {socket}: is berthd running? Start it with `systemctl start berth`, or name its socket \
             with --address"
        ),
        Some(io::ErrorKind::PermissionDenied) => anyhow!(
            "no permission to use {socket}: run this as root, or join the group that `grpc.gid` in berthd's \
             configuration names"
        ),
        _ => error.context(format!("connecting to {socket}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_paths_with_or_without_scheme() {
        for address in ["/run/a.sock", "unix:///run/a.sock", "unix:/run/a.sock"] {
            assert_eq!(socket_path(address).unwrap(), Path::new("/run/a.sock"), "{address}");
        }
        assert!(socket_path("tcp://127.0.0.1:1").unwrap_err().to_string().contains("Unix socket"));
        assert!(socket_path("").is_err());
        assert!(socket_path("unix://").is_err());
    }

    #[tokio::test]
    async fn a_missing_daemon_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let error = Client::connect(socket.to_str().unwrap()).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("is berthd running?") && text.contains("--address"), "{text}");

        // A socket file that nobody listens on any more: what a killed daemon leaves.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = Client::connect(socket.to_str().unwrap()).await.unwrap_err();
        assert!(format!("{error:#}").contains("is berthd running?"), "{error:#}");
    }
}
