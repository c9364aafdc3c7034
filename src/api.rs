//! Berth's own API beside the CRI, on the same socket: gRPC in, one domain call, gRPC out. No state and no rules of its
//! own. A file for each service of `proto/berth/v1/`.

mod images;

use crate::image::Images;
use crate::proto::berth::v1::images_server::ImagesServer;

pub use images::ImagesFace;

/// The image transfer service over `images`, ready to be added to a server.
pub fn images(images: Images) -> ImagesServer<ImagesFace> {
    ImagesServer::new(ImagesFace::new(images))
}
