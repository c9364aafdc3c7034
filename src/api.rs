//! Berth's own API beside the CRI, on the same socket: gRPC in, one domain call, gRPC out. No state and no rules of its
//! own. A file for each service of `proto/berth/v1/`.

mod images;
mod networks;

use berth_cni::Controller;

use crate::image::Images;
use crate::pod::Pods;
use crate::proto::berth::v1::images_server::ImagesServer;
use crate::proto::berth::v1::networks_server::NetworksServer;

pub use images::ImagesFace;
pub use networks::NetworksFace;

/// The image transfer service over `images`, ready to be added to a server.
pub fn images(images: Images) -> ImagesServer<ImagesFace> {
    ImagesServer::new(ImagesFace::new(images))
}

/// The service of networks, ready to be added to a server.
pub fn networks(pods: Pods, networks: Controller) -> NetworksServer<NetworksFace> {
    NetworksServer::new(NetworksFace::new(pods, networks))
}
