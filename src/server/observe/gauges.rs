//! What is read off the rooms at each scrape: how much there is of everything now.

use std::collections::HashMap;

use berth_cni::Controller;
use prometheus::{Counter, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::super::assembly::Rooms;
use crate::container::ContainerState;
use crate::image::Images;
use crate::pod::Pods;
use crate::streaming::Streaming;
use crate::watchdog::{Part, Watchdog};

/// Gauges, and where they are read.
#[derive(Debug)]
pub(super) struct Gauges {
    pods: Pods,
    images: Images,
    networks: Controller,
    streaming: Streaming,
    watchdog: Watchdog,
    by_pod_state: IntGaugeVec,
    by_container_state: IntGaugeVec,
    image_count: IntGauge,
    image_bytes: IntGauge,
    endpoints: IntGaugeVec,
    addresses: IntGaugeVec,
    overlay_connected: IntGauge,
    overlay_hosts: IntGauge,
    overlay_lag: IntGauge,
    overlay_peers: IntGaugeVec,
    overlay_stale: IntGaugeVec,
    questions: IntCounterVec,
    pool_size: GaugeVec,
    pool_leased: GaugeVec,
    commits: IntCounter,
    commit_seconds: Counter,
    sessions: IntGaugeVec,
    hanging: IntGaugeVec,
    ready: IntGauge,
}

impl Gauges {
    pub(super) fn new(registry: &Registry, rooms: &Rooms) -> Result<Self, prometheus::Error> {
        let vector = |name: &str, help: &str, label: &str| IntGaugeVec::new(Opts::new(name, help), &[label]);
        let gauges = Self {
            pods: rooms.pods.clone(),
            images: rooms.images.clone(),
            networks: rooms.networks.clone(),
            streaming: rooms.streaming.clone(),
            watchdog: rooms.watchdog.clone(),
            by_pod_state: vector("berth_pods", "Pod sandboxes, by state: ready, notready.", "state")?,
            by_container_state: vector(
                "berth_containers",
                "Containers, by state: created, running, exited, unknown.",
                "state",
            )?,
            image_count: IntGauge::new("berth_images", "Images.")?,
            image_bytes: IntGauge::new(
                "berth_image_filesystem_used_bytes",
                "Bytes that images take, as ImageFsInfo says it.",
            )?,
            endpoints: vector("berth_network_endpoints", "Pods on a network.", "network")?,
            addresses: vector(
                "berth_network_addresses_leased",
                "Addresses of a network that pods hold, of both families.",
                "network",
            )?,
            overlay_connected: IntGauge::new("berth_overlay_connected", "1 while etcd answers, else 0.")?,
            overlay_hosts: IntGauge::new(
                "berth_overlay_hosts",
                "Nodes of overlay networks that are alive, this one among them.",
            )?,
            overlay_lag: IntGauge::new(
                "berth_overlay_revision_lag",
                "Revisions of etcd that were heard of and are not in the kernel yet.",
            )?,
            overlay_peers: vector(
                "berth_overlay_peers",
                "Addresses on other nodes that the kernel knows of a network.",
                "network",
            )?,
            overlay_stale: vector(
                "berth_overlay_stale_records",
                "Records of a network that lost to one of the same address with a later epoch.",
                "network",
            )?,
            questions: IntCounterVec::new(
                Opts::new("berth_dns_queries_total", "Questions of pods to their resolvers, by answer."),
                &["answer"],
            )?,
            pool_size: GaugeVec::new(
                Opts::new(
                    "berth_network_pool_addresses",
                    "Addresses that a pool gives out by itself, leased or not.",
                ),
                &["network", "subnet"],
            )?,
            pool_leased: GaugeVec::new(
                Opts::new("berth_network_pool_leased", "Those of a pool that are leased."),
                &["network", "subnet"],
            )?,
            commits: IntCounter::new(
                "berth_network_store_commits_total",
                "Transactions that the networks' store has committed.",
            )?,
            commit_seconds: Counter::new(
                "berth_network_store_commit_seconds_total",
                "Seconds that these took together.",
            )?,
            sessions: vector(
                "berth_streaming_sessions",
                "Sessions now, by kind: exec, attach, portforward.",
                "kind",
            )?,
            hanging: vector(
                "berth_hanging",
                "1 while a part of the daemon makes no progress: workers, blocking, store, pods.",
                "part",
            )?,
            ready: IntGauge::new("berth_ready", "1 while pods can be run, as /readyz says it, else 0.")?,
        };
        registry.register(Box::new(gauges.by_pod_state.clone()))?;
        registry.register(Box::new(gauges.by_container_state.clone()))?;
        registry.register(Box::new(gauges.image_count.clone()))?;
        registry.register(Box::new(gauges.image_bytes.clone()))?;
        registry.register(Box::new(gauges.endpoints.clone()))?;
        registry.register(Box::new(gauges.addresses.clone()))?;
        registry.register(Box::new(gauges.overlay_connected.clone()))?;
        registry.register(Box::new(gauges.overlay_hosts.clone()))?;
        registry.register(Box::new(gauges.overlay_lag.clone()))?;
        registry.register(Box::new(gauges.overlay_peers.clone()))?;
        registry.register(Box::new(gauges.overlay_stale.clone()))?;
        registry.register(Box::new(gauges.questions.clone()))?;
        registry.register(Box::new(gauges.pool_size.clone()))?;
        registry.register(Box::new(gauges.pool_leased.clone()))?;
        registry.register(Box::new(gauges.commits.clone()))?;
        registry.register(Box::new(gauges.commit_seconds.clone()))?;
        registry.register(Box::new(gauges.sessions.clone()))?;
        registry.register(Box::new(gauges.hanging.clone()))?;
        registry.register(Box::new(gauges.ready.clone()))?;
        let build = Opts::new("berth_build_info", "1; the labels say what runs.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = IntGauge::with_opts(build)?;
        build.set(1);
        registry.register(Box::new(build))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(gauges)
    }

    /// Reads them anew. Snapshots and counters in memory: no pod is waited for.
    pub(super) fn refresh(&self) {
        let (mut pods, mut containers) = ([0_i64; 2], [0_i64; 4]);
        for pod in self.pods.pods() {
            pods[usize::from(!pod.ready)] += 1;
            for container in &pod.containers {
                let state = match container.state {
                    ContainerState::Created => 0,
                    ContainerState::Running { .. } => 1,
                    ContainerState::Exited { .. } => 2,
                    ContainerState::Unknown => 3,
                };
                containers[state] += 1;
            }
        }
        for (state, count) in ["ready", "notready"].into_iter().zip(pods) {
            self.by_pod_state.with_label_values(&[state]).set(count);
        }
        for (state, count) in ["created", "running", "exited", "unknown"].into_iter().zip(containers) {
            self.by_container_state.with_label_values(&[state]).set(count);
        }
        self.image_count.set(number(self.images.list().len()));
        self.image_bytes.set(i64::try_from(self.images.fs_info().used_bytes).unwrap_or(i64::MAX));
        self.networks();
        self.pools();
        self.overlay();
        self.daemon();
        let counts = self.networks.name_counts();
        for (answer, count) in [
            ("local", counts.local),
            ("cached", counts.cached),
            ("forwarded", counts.forwarded),
            ("failed", counts.failed),
            ("refused", counts.refused),
        ] {
            let counter = self.questions.with_label_values(&[answer]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    fn overlay(&self) {
        let status = self.networks.overlay_status().unwrap_or_default();
        self.overlay_connected.set(status.connected.into());
        self.overlay_hosts.set(number(status.hosts));
        self.overlay_lag.set(status.lag);
        self.overlay_peers.reset();
        self.overlay_stale.reset();
        for (network, (peers, stale)) in status.networks {
            self.overlay_peers.with_label_values(&[&network]).set(number(peers));
            self.overlay_stale.with_label_values(&[&network]).set(number(stale));
        }
    }

    fn networks(&self) {
        let mut found: HashMap<String, (i64, i64)> =
            self.networks.networks().into_iter().map(|network| (network.name, (0, 0))).collect();
        match self.networks.sandboxes() {
            Ok(sandboxes) => {
                for endpoint in sandboxes.iter().flat_map(|sandbox| &sandbox.endpoints) {
                    let entry = found.entry(endpoint.network.clone()).or_default();
                    entry.0 += 1;
                    entry.1 += number(endpoint.addresses.len());
                }
            }
            Err(error) => {
                tracing::warn!(error = crate::error::chain(&error), "reading endpoints for metrics");
                return;
            }
        }
        // Networks that are gone are gone from the answer.
        self.endpoints.reset();
        self.addresses.reset();
        for (network, (endpoints, addresses)) in found {
            self.endpoints.with_label_values(&[&network]).set(endpoints);
            self.addresses.with_label_values(&[&network]).set(addresses);
        }
    }

    fn pools(&self) {
        let pools = match self.networks.pool_use() {
            Ok(pools) => pools,
            Err(error) => {
                tracing::warn!(error = crate::error::chain(&error), "reading pools for metrics");
                return;
            }
        };
        self.pool_size.reset();
        self.pool_leased.reset();
        for pool in pools {
            let labels = [pool.network.as_str(), &pool.subnet.to_string()];
            self.pool_size.with_label_values(&labels).set(approximate(pool.capacity));
            self.pool_leased.with_label_values(&labels).set(approximate(pool.leased as u128));
        }
    }

    fn daemon(&self) {
        let (commits, took) = berth_cni::commits();
        self.commits.inc_by(commits.saturating_sub(self.commits.get()));
        self.commit_seconds.inc_by((took.as_secs_f64() - self.commit_seconds.get()).max(0.0));
        for (kind, count) in self.streaming.sessions() {
            self.sessions.with_label_values(&[kind]).set(count);
        }
        let hangs = self.watchdog.hangs();
        for part in Part::ALL {
            let hanging = hangs.iter().any(|hang| hang.part == part);
            self.hanging.with_label_values(&[part.word()]).set(hanging.into());
        }
        self.ready.set((hangs.is_empty() && self.pods.network_ready().is_ok()).into());
    }

    /// A family without a single label value is not in the output.
    #[cfg(test)]
    pub(super) fn seen_in_tests(&self) {
        self.refresh();
        self.endpoints.with_label_values(&["bridge"]);
        self.addresses.with_label_values(&["bridge"]);
        self.overlay_peers.with_label_values(&["overlay"]);
        self.overlay_stale.with_label_values(&["overlay"]);
    }
}

/// As a metric holds it: exact up to 2^53, which is more than anybody leases.
#[allow(clippy::cast_precision_loss)]
fn approximate(count: u128) -> f64 {
    count as f64
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
