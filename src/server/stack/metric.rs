//! Counts calls, errors by code, and how long calls take.

use std::future::Future;
use std::time::Instant;

use http::{HeaderMap, Response};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tonic::Code;
use tonic::body::Body;

use super::{Around, Call, code};

/// Seconds, from a list of a few pods to a slow pull.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 240.0];

/// The metrics of calls.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    operations: IntCounterVec,
    errors: IntCounterVec,
    latency: HistogramVec,
    in_flight: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let name = |metric: &str| format!("berth_cri_operations_{metric}");
        let by_call = &["operation"];
        let metrics = Self {
            operations: IntCounterVec::new(
                Opts::new(name("total"), "Calls that ended, by operation."),
                by_call,
            )?,
            errors: IntCounterVec::new(
                Opts::new(
                    name("errors_total"),
                    "Calls that failed or were given up, by operation and gRPC code.",
                ),
                &["operation", "code"],
            )?,
            latency: HistogramVec::new(
                HistogramOpts::new(name("latency_seconds"), "Seconds from request to answer, by operation.")
                    .buckets(BUCKETS.to_vec()),
                by_call,
            )?,
            in_flight: IntGaugeVec::new(
                Opts::new(name("in_flight"), "Calls under way, by operation."),
                by_call,
            )?,
        };
        registry.register(Box::new(metrics.operations.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        Ok(metrics)
    }
}

#[cfg(test)]
impl Metrics {
    /// A family without a single label value is not in the output.
    pub(in crate::server) fn seen_in_tests(&self) {
        self.operations.with_label_values(&["Version"]);
        self.errors.with_label_values(&["Version", "Internal"]);
        self.latency.with_label_values(&["Version"]);
        self.in_flight.with_label_values(&["Version"]);
    }
}

impl Around for Metrics {
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
        let watch = Watch::start(self.clone(), call);
        async move {
            // The whole of it moves in here, to be dropped with the call.
            let mut watch = watch;
            let result = inner.await;
            watch.code = result.as_ref().map_or(Code::Internal, code);
            result
        }
    }
}

/// Records a call when it ends, also when its client goes away and it is dropped.
struct Watch {
    metrics: Metrics,
    call: Call,
    start: Instant,
    code: Code,
}

impl Watch {
    fn start(metrics: Metrics, call: Call) -> Self {
        metrics.in_flight.with_label_values(&[call.name]).inc();
        Self { metrics, call, start: Instant::now(), code: Code::Cancelled }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let name = self.call.name;
        self.metrics.in_flight.with_label_values(&[name]).dec();
        self.metrics.operations.with_label_values(&[name]).inc();
        self.metrics.latency.with_label_values(&[name]).observe(self.start.elapsed().as_secs_f64());
        if self.code != Code::Ok {
            self.metrics.errors.with_label_values(&[name, &format!("{:?}", self.code)]).inc();
        }
    }
}
