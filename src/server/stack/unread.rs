//! A request that is answered before all of it is read.
//!
//! A message longer than the limit is refused at its length, which comes first. If the rest were left unread then, HTTP/2 would have
//! its stream reset (RFC 9113, 8.1), and a client that still sends may see the reset in the place of the answer. So what nobody
//! reads is taken in and dropped, for a while.
//!
//! The refusal's code is the one that gRPC's own servers give.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::code;

/// Most bytes that are taken in after the answer.
const LEFT_MAX: usize = 256 << 20;
/// For how long.
const LEFT_TIME: Duration = Duration::from_secs(10);
/// How tonic says that a message is too long; its code for that is OUT_OF_RANGE.
const TOO_LONG: &str = "decoded message length too large";

/// The layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnreadLayer;

impl<S> Layer<S> for UnreadLayer {
    type Service = Unread<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Unread { inner }
    }
}

/// The service with the layer around it.
#[derive(Clone, Debug)]
pub(crate) struct Unread<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Unread<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = self.inner.call(request.map(|body| Body::new(Watched(Some(body)))));
        Box::pin(async move { answering.await.map(exhausted) })
    }
}

/// Gives a message that is too long its code.
fn exhausted(response: Response<Body>) -> Response<Body> {
    if code(&response) != Code::OutOfRange {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.message().contains(TOO_LONG) => {
            let numbers: Vec<&str> = status
                .message()
                .split(|c: char| !c.is_ascii_digit())
                .filter(|part| !part.is_empty())
                .collect();
            let [length, limit] = numbers.as_slice() else { return response };
            Status::resource_exhausted(format!(
                "the request of {length} bytes is longer than {limit}: grpc.max_message_size is the limit"
            ))
            .into_http()
        }
        _ => response,
    }
}

/// A request's body; when it is dropped before its end, the rest is taken in.
struct Watched(Option<Body>);

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = self.0.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let rest = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(rest), Ok(runtime)) = (rest, tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(LEFT_TIME, take_in(rest)));
        }
    }
}

/// Reads to the end, the client's or ours.
async fn take_in(mut rest: Body) {
    let mut count: usize = 0;
    while let Some(Ok(frame)) = rest.frame().await {
        count = count.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if count > LEFT_MAX {
            break;
        }
    }
}
