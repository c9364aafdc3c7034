//! Pull: brings an image from its registry and says how far it is.

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::message;
use crate::api::stream;
use crate::cri::{image_message, status_of};
use crate::image::{self, Images};
use crate::proto::berth::v1::pull_response::Event;
use crate::proto::berth::v1::{PullRequest, PullResponse};

/// Reports kept for a slow reader; later ones are left out.
const REPORTS: usize = 64;

pub(super) fn call(
    images: Images,
    request: PullRequest,
) -> Result<BoxStream<'static, Result<PullResponse, Status>>, Status> {
    let PullRequest { reference, auth, platform } = request;
    super::bounded(&reference)?;
    let (progress, reports) = mpsc::channel(REPORTS);
    let request = image::PullRequest {
        reference,
        auth: auth.and_then(image_message::credentials),
        platform: message::platform(&platform)?,
        progress: Some(progress),
    };
    let work = async move { images.pull(request).await.map_err(status_of) };
    let reports = ReceiverStream::new(reports).map(|step| Ok(response(Event::Layer(message::layer(&step)))));
    let last =
        |image: std::sync::Arc<image::Image>| Some(response(Event::Image(image_message::image(&image))));
    Ok(stream::of_work(reports, work, last).boxed())
}

fn response(event: Event) -> PullResponse {
    PullResponse { event: Some(event) }
}
