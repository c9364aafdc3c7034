//! A fault in one call is that call's: it is answered INTERNAL, and the daemon goes on.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use http::{HeaderMap, Response};
use tonic::Status;
use tonic::body::Body;

use super::{Around, Call};

/// Catches panics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panic;

impl Around for Panic {
    fn around<F, E>(
        &self,
        call: Call,
        _: &HeaderMap,
        inner: F,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Send + 'static,
    {
        // Unwind safety: the handler owns what it holds, and locks of parking_lot don't poison.
        AssertUnwindSafe(inner).catch_unwind().map(move |result| {
            result.unwrap_or_else(|panic| {
                let message = text(&*panic);
                tracing::error!(
                    call = call.name,
                    panic = message,
                    "a call panicked; this is a fault in berth"
                );
                Ok(Status::internal(format!("{} panicked: {message}", call.name)).into_http())
            })
        })
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
