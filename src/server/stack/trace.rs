//! A span for each call, with the ids of pod and container once the face has decoded them, and a line at its end. No
//! payload: requests hold secrets (environments, registry passwords). The span is part of the caller's trace where traces
//! are collected.

use std::future::Future;
use std::time::Instant;

use http::{HeaderMap, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::{Around, Call, code};
use crate::telemetry;

/// Opens spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace;

impl Around for Trace {
    fn around<F, E>(
        &self,
        call: Call,
        headers: &HeaderMap,
        inner: F,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Send + 'static,
    {
        let span = tracing::info_span!(
            "cri",
            call = call.name,
            name = Empty,
            pod = Empty,
            container = Empty,
            image = Empty,
            otel.name = Empty,
            otel.kind = Empty,
        );
        telemetry::called(&span, call.name, headers);
        let traced = async move {
            let start = Instant::now();
            let result = inner.await;
            if let Ok(response) = &result {
                end(response, start);
            }
            result
        };
        traced.instrument(span)
    }
}

/// Expected refusals are for those who debug; what an operator has to look after is a warning.
fn end(response: &Response<Body>, start: Instant) {
    let elapsed = start.elapsed();
    telemetry::answered(&Span::current(), code(response), || message(response));
    match code(response) {
        Code::Ok => tracing::debug!(?elapsed, "answered"),
        code @ (Code::NotFound | Code::Unimplemented | Code::Cancelled | Code::InvalidArgument) => {
            tracing::debug!(?elapsed, ?code, error = message(response), "refused");
        }
        code => tracing::warn!(?elapsed, ?code, error = message(response), "failed"),
    }
}

fn message(response: &Response<Body>) -> String {
    Status::from_header_map(response.headers()).map(|status| status.message().to_owned()).unwrap_or_default()
}
