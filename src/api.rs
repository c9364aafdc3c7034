//! Berth's own API beside the CRI, on the same socket: gRPC in, one domain call, gRPC out. No state and no rules of its
//! own. A file for each service of `proto/berth/v1/`.

mod containers;
mod debug;
mod images;
mod networks;
mod stream;
mod volumes;

use berth_cni::Controller;

use crate::events::Recent;
use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::containers_server::ContainersServer;
use crate::proto::berth::v1::debug_server::DebugServer;
use crate::proto::berth::v1::images_server::ImagesServer;
use crate::proto::berth::v1::networks_server::NetworksServer;
use crate::proto::berth::v1::volumes_server::VolumesServer;
use crate::streaming::Streaming;
use crate::volume::Volumes;
use crate::watchdog::Watchdog;

pub use containers::ContainersFace;
pub use debug::{DebugFace, Scrape};
pub use images::ImagesFace;
pub use networks::NetworksFace;
pub use volumes::VolumesFace;

/// The image transfer service over `images`, ready to be added to a server.
pub fn images(images: Images, pods: Pods) -> ImagesServer<ImagesFace> {
    ImagesServer::new(ImagesFace::new(images, pods))
}

/// The service of what the CRI has no words for, ready to be added to a server.
pub fn containers(pods: Pods, images: Images) -> ContainersServer<ContainersFace> {
    ContainersServer::new(ContainersFace::new(pods, images))
}

/// The service of networks, ready to be added to a server.
pub fn networks(pods: Pods, networks: Controller) -> NetworksServer<NetworksFace> {
    NetworksServer::new(NetworksFace::new(pods, networks))
}

/// The service of volumes, ready to be added to a server.
pub fn volumes(pods: Pods, images: Images, volumes: Volumes) -> VolumesServer<VolumesFace> {
    VolumesServer::new(VolumesFace::new(pods, images, volumes))
}

/// The service of how the daemon itself is, ready to be added to a server.
pub fn debug(
    pods: Pods,
    networks: Controller,
    streaming: Streaming,
    watchdog: Watchdog,
    recent: Recent,
    scrape: Scrape,
) -> DebugServer<DebugFace> {
    DebugServer::new(DebugFace { pods, networks, streaming, watchdog, recent, scrape })
}
