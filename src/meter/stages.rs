//! How long the steps of a pod's life take: where a slow start spends its time.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use prometheus::{Histogram, HistogramOpts, Registry};
use tracing::Instrument as _;

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

/// Times steps that were taken; those that failed are in the errors of calls.
#[derive(Clone, Debug)]
pub struct Stages(Arc<[Histogram; Stage::ALL.len()]>);

impl Stages {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
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
        Ok(Self(Arc::new(all)))
    }

    /// Times `work`; in a trace it is a span below the one that is current.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn time<T, E>(&self, stage: Stage, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let span = tracing::debug_span!("stage", otel.name = stage.name());
        self.observe(stage, work).instrument(span).await
    }

    /// Times `work` that goes on when the call which it belongs to is over; in a trace it is a span at `place`.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) async fn time_at<T, E>(
        &self,
        place: &Place,
        stage: Stage,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let span = tracing::debug_span!(parent: None, "stage", otel.name = stage.name());
        place.hold(&span);
        self.observe(stage, work).instrument(span).await
    }

    async fn observe<T, E>(&self, stage: Stage, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let start = Instant::now();
        let done = work.await?;
        // The enumeration's own order: there is one for each.
        if let Some(histogram) = self.0.get(stage as usize) {
            histogram.observe(start.elapsed().as_secs_f64());
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn only_what_was_done_is_timed() {
        let registry = Registry::new();
        let stages = Stages::new(&registry).unwrap();
        stages.time(Stage::ContainerStart, async { Ok::<_, ()>(()) }).await.unwrap();
        stages.time(Stage::ContainerStart, async { Err::<(), _>(()) }).await.unwrap_err();
        for family in registry.gather() {
            let count = family.get_metric()[0].get_histogram().get_sample_count();
            assert_eq!(
                count,
                u64::from(family.name() == "berth_cri_container_start_seconds"),
                "{}",
                family.name()
            );
        }
    }
}
