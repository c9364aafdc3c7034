//! Pulls: how many, how long, how much of them was here already.

use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Seconds, from an image that is here to one of many gigabytes.
const BUCKETS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1200.0];

/// Counts pulls.
#[derive(Clone, Debug)]
pub struct Pulls {
    ended: IntCounterVec,
    under_way: IntGauge,
    latency: Histogram,
    bytes: IntCounter,
    layers: IntCounterVec,
    retries: IntCounter,
}

impl Pulls {
    /// Registers the counters.
    ///
    /// # Errors
    /// When a name is taken in this registry.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let name = |metric: &str| format!("berth_cri_image_{metric}");
        let pulls = Self {
            ended: IntCounterVec::new(
                Opts::new(name("pulls_total"), "Pulls that ended, by result: success, failure, cancelled."),
                &["result"],
            )?,
            under_way: IntGauge::new(name("pulls_in_progress"), "Pulls under way.")?,
            latency: Histogram::with_opts(
                HistogramOpts::new(name("pull_seconds"), "Seconds that successful pulls took.")
                    .buckets(BUCKETS.to_vec()),
            )?,
            bytes: IntCounter::new(
                name("pulls_bytes_total"),
                "Bytes of layers and configurations that came from registries.",
            )?,
            layers: IntCounterVec::new(
                Opts::new(
                    name("pull_layers_total"),
                    "Layers of pulled images, by source: registry, or store when they were here already.",
                ),
                &["source"],
            )?,
            retries: IntCounter::new(
                name("pull_retries_total"),
                "Transfers that broke and went on from where they were.",
            )?,
        };
        registry.register(Box::new(pulls.ended.clone()))?;
        registry.register(Box::new(pulls.under_way.clone()))?;
        registry.register(Box::new(pulls.latency.clone()))?;
        registry.register(Box::new(pulls.bytes.clone()))?;
        registry.register(Box::new(pulls.layers.clone()))?;
        registry.register(Box::new(pulls.retries.clone()))?;
        // There from the first scrape on, so that a rate over them is one.
        for result in ["success", "failure", "cancelled"] {
            pulls.ended.with_label_values(&[result]);
        }
        for source in ["registry", "store"] {
            pulls.layers.with_label_values(&[source]);
        }
        Ok(pulls)
    }

    /// A pull begins.
    pub fn begin(&self) -> Pull {
        self.under_way.inc();
        Pull { pulls: self.clone(), start: Instant::now(), result: "cancelled" }
    }

    /// Bytes came.
    pub fn received(&self, bytes: usize) {
        self.bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// A layer is there: from the registry, or it was here.
    pub fn layer(&self, fetched: bool) {
        self.layers.with_label_values(&[if fetched { "registry" } else { "store" }]).inc();
    }

    /// A transfer broke and goes on.
    pub fn retried(&self) {
        self.retries.inc();
    }
}

/// A pull under way. Dropped without an end it counts as cancelled.
#[derive(Debug)]
pub struct Pull {
    pulls: Pulls,
    start: Instant,
    result: &'static str,
}

impl Pull {
    /// It ended.
    pub fn end(mut self, done: bool) {
        self.result = if done { "success" } else { "failure" };
        if done {
            self.pulls.latency.observe(self.start.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.pulls.under_way.dec();
        self.pulls.ended.with_label_values(&[self.result]).inc();
    }
}
