//! The stack of layers around every call, from the outside in: trace, metric, load limit, deadline, panic, unread.
//!
//! Each layer is an [`Around`]: it sees which [`Call`] is made, and the future that makes it. [`Wrap`] puts one around a
//! service, so that a layer's file holds only what the layer is about.

mod call;
mod deadline;
mod limit;
mod metric;
mod panic;
mod trace;
mod unread;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::layer::util::{Identity, Stack};
use tower::{Layer, Service, ServiceBuilder};

pub(crate) use call::Call;
pub(crate) use metric::Metrics;

/// Bounds of the stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Cap on a call's time.
    pub(crate) deadline: Duration,
    /// Changing calls at once.
    pub(crate) changes: usize,
    /// Reading calls at once.
    pub(crate) reads: usize,
}

/// The layers, outermost at the end: as `ServiceBuilder` nests them.
pub(crate) type Layers = Stack<
    unread::UnreadLayer,
    Stack<
        WrapLayer<panic::Panic>,
        Stack<
            WrapLayer<deadline::Deadline>,
            Stack<
                WrapLayer<limit::Limit>,
                Stack<WrapLayer<Metrics>, Stack<WrapLayer<trace::Trace>, Identity>>,
            >,
        >,
    >,
>;

/// The whole stack as one layer.
pub(crate) fn layers(bounds: Bounds, metrics: Metrics) -> Layers {
    ServiceBuilder::new()
        .layer(WrapLayer(trace::Trace))
        .layer(WrapLayer(metrics))
        .layer(WrapLayer(limit::Limit::new(bounds.changes, bounds.reads)))
        .layer(WrapLayer(deadline::Deadline(bounds.deadline)))
        .layer(WrapLayer(panic::Panic))
        .layer(unread::UnreadLayer)
        .into_inner()
}

/// What a layer does around a call.
pub(crate) trait Around: Clone + Send + Sync + 'static {
    /// Makes the call by awaiting `inner`, or answers in its place.
    fn around<F, E>(
        &self,
        call: Call,
        headers: &http::HeaderMap,
        inner: F,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Send + 'static;
}

/// Puts a layer around a service.
#[derive(Clone, Debug)]
pub(crate) struct WrapLayer<A>(A);

impl<A: Clone, S> Layer<S> for WrapLayer<A> {
    type Service = Wrap<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Wrap { around: self.0.clone(), inner }
    }
}

/// A service with a layer around it.
#[derive(Clone, Debug)]
pub(crate) struct Wrap<A, S> {
    around: A,
    inner: S,
}

impl<A, S> Service<Request<Body>> for Wrap<A, S>
where
    A: Around,
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
        let call = Call::of(request.uri().path());
        let headers = request.headers().clone();
        let inner = self.inner.call(request);
        Box::pin(self.around.around(call, &headers, inner))
    }
}

/// The code an answer carries. Errors of unary calls stand in the headers; what a stream ends with is not seen here.
fn code(response: &Response<Body>) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

#[cfg(test)]
mod tests;
