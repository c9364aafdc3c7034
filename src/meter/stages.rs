//! How long the steps of a pod's life take: where a slow start spends its time.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use tracing::Instrument as _;

use crate::progress::{Board, Kind};
use crate::telemetry::Place;

/// Seconds, from a netlink call to a disk that is stuck.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

/// A step. The names are those that operators know from other runtimes, where these have the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A sandbox, all steps together.
    SandboxCreate,
    /// Its namespaces, made and pinned.
    SandboxCreateNamespaces,
    /// Its networks: addresses, interfaces, routes, published ports.
    SandboxCreateNetwork,
    /// Its networks, taken down.
    SandboxDeleteNetwork,
    /// A container's directories and specification.
    ContainerCreateRootfs,
    /// Its shim's program, until it runs.
    ContainerCreateShim,
    /// What the shim makes: namespaces, mounts, control group. It is under way while CreateContainer answers.
    ContainerRuntimeCreate,
    /// From StartContainer's request until its command runs.
    ContainerStart,
}

impl Stage {
    /// All of them, in the order of their definition.
    const ALL: [Self; 8] = [
        Self::SandboxCreate,
        Self::SandboxCreateNamespaces,
        Self::SandboxCreateNetwork,
        Self::SandboxDeleteNetwork,
        Self::ContainerCreateRootfs,
        Self::ContainerCreateShim,
        Self::ContainerRuntimeCreate,
        Self::ContainerStart,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::SandboxCreate => "sandbox_create",
            Self::SandboxCreateNamespaces => "sandbox_create_namespaces",
            Self::SandboxCreateNetwork => "sandbox_create_network",
            Self::SandboxDeleteNetwork => "sandbox_delete_network",
            Self::ContainerCreateRootfs => "container_create_rootfs",
            Self::ContainerCreateShim => "container_create_shim",
            Self::ContainerRuntimeCreate => "container_runtime_create",
            Self::ContainerStart => "container_start",
        }
    }

    /// The call that it is part of.
    fn operation(self) -> &'static str {
        match self {
            Self::SandboxCreate | Self::SandboxCreateNamespaces | Self::SandboxCreateNetwork => {
                "run_pod_sandbox"
            }
            Self::SandboxDeleteNetwork => "stop_pod_sandbox",
            Self::ContainerCreateRootfs | Self::ContainerCreateShim | Self::ContainerRuntimeCreate => {
                "create_container"
            }
            Self::ContainerStart => "start_container",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::SandboxCreate => "Seconds until a sandbox stood.",
            Self::SandboxCreateNamespaces => "Seconds that a sandbox's namespaces took.",
            Self::SandboxCreateNetwork => "Seconds until a sandbox was on its networks.",
            Self::SandboxDeleteNetwork => "Seconds until a sandbox was off its networks.",
            Self::ContainerCreateRootfs => "Seconds that a container's directories and specification took.",
            Self::ContainerCreateShim => "Seconds until a container's shim ran.",
            Self::ContainerRuntimeCreate => "Seconds that the shim took to create a container.",
            Self::ContainerStart => "Seconds until a container's command ran.",
        }
    }
}

/// Times steps that were taken, counts those that failed, and shows on the board those that are under way.
#[derive(Clone, Debug)]
pub struct Stages {
    taken: Arc<[Histogram; Stage::ALL.len()]>,
    failed: IntCounterVec,
    board: Board,
}

impl Stages {
    pub(super) fn new(registry: &Registry, board: Board) -> Result<Self, prometheus::Error> {
        let histogram = |stage: Stage| {
            let name = format!("berth_cri_{}_seconds", stage.name());
            Histogram::with_opts(HistogramOpts::new(name, stage.help()).buckets(BUCKETS.to_vec()))
        };
        let [a, b, c, d, e, f, g, h] = Stage::ALL;
        let all = [
            histogram(a)?,
            histogram(b)?,
            histogram(c)?,
            histogram(d)?,
            histogram(e)?,
            histogram(f)?,
            histogram(g)?,
            histogram(h)?,
        ];
        for histogram in &all {
            registry.register(Box::new(histogram.clone()))?;
        }
        let failed = IntCounterVec::new(
            Opts::new("berth_cri_stage_errors_total", "Steps that failed, by stage."),
            &["stage"],
        )?;
        registry.register(Box::new(failed.clone()))?;
        for stage in Stage::ALL {
            failed.with_label_values(&[stage.name()]);
        }
        Ok(Self { taken: Arc::new(all), failed, board })
    }

    /// Times `work` on a pod or container; in a trace it is a span below the one that is current.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn time<T, E>(
        &self,
        stage: Stage,
        object: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = tracing::debug_span!("stage", otel.name = stage.name());
        self.observe(stage, object, work).instrument(span).await
    }

    /// Times `work` that goes on when the call which it belongs to is over; in a trace it is a span at `place`.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) async fn time_at<T, E>(
        &self,
        place: &Place,
        stage: Stage,
        object: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = tracing::debug_span!(parent: None, "stage", otel.name = stage.name());
        place.hold(&span);
        self.observe(stage, object, work).instrument(span).await
    }

    async fn observe<T, E>(
        &self,
        stage: Stage,
        object: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let _under_way = self.board.begin(Kind::Step, stage.operation(), stage.name(), object);
        let start = Instant::now();
        let done = match work.await {
            Ok(done) => done,
            Err(error) => {
                self.failed.with_label_values(&[stage.name()]).inc();
                return Err(error);
            }
        };
        // The enumeration's own order: there is one for each.
        if let Some(histogram) = self.taken.get(stage as usize) {
            histogram.observe(start.elapsed().as_secs_f64());
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    use super::*;

    #[tokio::test]
    async fn what_was_done_is_timed_and_what_failed_is_counted() {
        let registry = Registry::new();
        let board = Board::default();
        let stages = Stages::new(&registry, board.clone()).unwrap();
        let seen = async {
            let under_way = board.list();
            assert_eq!(under_way.len(), 1);
            assert_eq!((under_way[0].operation, under_way[0].stage), ("start_container", "container_start"));
            assert_eq!(under_way[0].object, "c1");
            Ok::<_, ()>(())
        };
        stages.time(Stage::ContainerStart, "c1", seen).await.unwrap();
        stages.time(Stage::ContainerStart, "c1", async { Err::<(), _>(()) }).await.unwrap_err();
        assert!(board.list().is_empty());
        for family in registry.gather() {
            for metric in family.get_metric() {
                let (count, wanted) = if family.name() == "berth_cri_stage_errors_total" {
                    let stage = metric.get_label()[0].value();
                    (metric.get_counter().get_value() as u64, stage == "container_start")
                } else {
                    let count = metric.get_histogram().get_sample_count();
                    (count, family.name() == "berth_cri_container_start_seconds")
                };
                assert_eq!(count, u64::from(wanted), "{}", family.name());
            }
        }
    }
}
