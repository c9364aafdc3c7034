//! Push: sends an image to its registry and says how far it is; and the question whether credentials are good.

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{bounded, message};
use crate::api::stream;
use crate::cri::{image_message, status_of};
use crate::image::{self, Images, Pushed};
use crate::proto::berth::v1::push_response::Event;
use crate::proto::berth::v1::{
    CheckCredentialsRequest, CheckCredentialsResponse, PushRequest, PushResponse, PushedImage,
};

/// Reports kept for a slow reader; later ones are left out.
const REPORTS: usize = 64;

pub(super) fn call(
    images: Images,
    request: PushRequest,
) -> Result<BoxStream<'static, Result<PushResponse, Status>>, Status> {
    let PushRequest { reference, auth } = request;
    bounded(&reference)?;
    let (progress, reports) = mpsc::channel(REPORTS);
    let auth = auth.and_then(image_message::credentials);
    let request = image::PushRequest { reference, auth, progress: Some(progress) };
    let work = async move { images.push(request).await.map_err(status_of) };
    let reports = ReceiverStream::new(reports).map(|step| Ok(response(Event::Layer(message::layer(&step)))));
    let last = |pushed: Pushed| {
        let platforms = u32::try_from(pushed.platforms).unwrap_or(u32::MAX);
        let (reference, digest) = (pushed.reference, pushed.digest.to_string());
        Some(response(Event::Pushed(PushedImage { reference, digest, platforms })))
    };
    Ok(stream::of_work(reports, work, last).boxed())
}

fn response(event: Event) -> PushResponse {
    PushResponse { event: Some(event) }
}

pub(super) async fn check_credentials(
    images: &Images,
    request: CheckCredentialsRequest,
) -> Result<CheckCredentialsResponse, Status> {
    bounded(&request.registry)?;
    let auth = request.auth.and_then(image_message::credentials);
    images.check_credentials(&request.registry, auth).await.map_err(status_of)?;
    Ok(CheckCredentialsResponse {})
}
