//! Records that are written: how long it takes, how often it fails.

use std::path::Path;
use std::time::Instant;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use crate::progress::{Board, Kind, UnderWay};

/// Seconds, from a page in memory to a disk that is stuck.
const BUCKETS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 20.0, 60.0];

/// Times writes.
#[derive(Clone, Debug)]
pub struct Writes {
    latency: HistogramVec,
    errors: IntCounterVec,
    board: Board,
}

impl Writes {
    pub(super) fn new(registry: &Registry, board: Board) -> Result<Self, prometheus::Error> {
        let writes = Self {
            latency: HistogramVec::new(
                HistogramOpts::new(
                    "berth_store_commit_seconds",
                    "Seconds that a record took to be written or removed.",
                )
                .buckets(BUCKETS.to_vec()),
                &["store"],
            )?,
            errors: IntCounterVec::new(
                Opts::new("berth_store_errors_total", "Records that could not be written or removed."),
                &["store"],
            )?,
            board,
        };
        registry.register(Box::new(writes.latency.clone()))?;
        registry.register(Box::new(writes.errors.clone()))?;
        // There from the first scrape on, so that a rate over them is one.
        for store in ["pods", "containers", "cni", "images", "layers"] {
            writes.latency.with_label_values(&[store]);
            writes.errors.with_label_values(&[store]);
        }
        Ok(writes)
    }

    /// A record of a store begins to be written, or removed.
    pub(crate) fn begin(&self, store: &'static str, action: &'static str, path: &Path) -> Write {
        self.note(Kind::Write, store, action, path)
    }

    /// The same of a record that is synced to the disk, which may take long while much is pulled, and keeps no pod from
    /// going on: the watchdog leaves it alone.
    pub(crate) fn begin_synced(&self, store: &'static str, action: &'static str, path: &Path) -> Write {
        self.note(Kind::Step, store, action, path)
    }

    fn note(&self, kind: Kind, store: &'static str, action: &'static str, path: &Path) -> Write {
        let under_way = self.board.begin(kind, action, store, path.display().to_string());
        Write { writes: self.clone(), store, start: Instant::now(), _under_way: under_way }
    }
}

/// A write under way.
#[derive(Debug)]
pub(crate) struct Write {
    writes: Writes,
    store: &'static str,
    start: Instant,
    _under_way: UnderWay,
}

impl Write {
    /// It ended.
    pub(crate) fn end(self, done: bool) {
        if done {
            let elapsed = self.start.elapsed().as_secs_f64();
            self.writes.latency.with_label_values(&[self.store]).observe(elapsed);
        } else {
            self.writes.errors.with_label_values(&[self.store]).inc();
        }
    }
}
