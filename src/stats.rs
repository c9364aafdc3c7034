//! Statistics of pods and containers.
//!
//! ```text
//!  faces ── containers(), pods() ──> cache (a second at most) ──> cgroup files      (on a blocking thread)
//!                                    rates (nano cores)      ──> sampler, every 10 s
//!                                    traffic (a second)      ──> one list of the host's links
//!                                    layers (tens of seconds) ──> a thread that walks writable layers
//! ```
//!
//! Nobody asks a shim. Whatever many ask within a second is read once. Writable layers are never walked in a call: what the
//! last walk found is what is shown, and asking for it makes the next one due.

mod cache;
mod disk;
mod layers;
mod processes;
mod rate;
mod top;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_cni::{Controller, Traffic};
use tokio::sync::Semaphore;

use crate::cgroup::{Mode, Naming};
use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::{PodSnapshot, Pods};

use cache::{Cache, Target};
pub use cache::{Depth, Sample};
pub use disk::Disk;
use disk::Names;
pub use layers::LayerUsage;
use layers::Layers;
pub use processes::Processes;
pub use top::{ProcessInfo, processes};

/// How often rates are sampled while nobody asks.
const SAMPLE: Duration = Duration::from_secs(10);
/// How long figures are good for.
const FRESH: Duration = Duration::from_secs(1);

/// What statistics are made with.
#[derive(Debug)]
pub struct Options {
    /// The pods.
    pub pods: Pods,
    /// Their networks.
    pub networks: Controller,
    /// How cgroups are named.
    pub naming: Naming,
    /// Which hierarchies there are.
    pub mode: Mode,
    /// The file system that writable layers are on, as ImageFsInfo names it.
    pub filesystem: PathBuf,
}

/// Statistics of all pods. Clones are the same.
#[derive(Clone, Debug)]
pub struct Stats(Arc<Inner>);

/// Interface counters by pod.
type TrafficByPod = Arc<HashMap<String, Vec<Traffic>>>;

#[derive(Debug)]
struct Inner {
    pods: Pods,
    networks: Controller,
    naming: Naming,
    filesystem: PathBuf,
    cache: Arc<Cache>,
    layers: Layers,
    names: Names,
    /// Held by who looks at the file system.
    turn: Arc<Semaphore>,
    /// When the counters were read, by both clocks.
    traffic: tokio::sync::Mutex<Option<(Instant, i64, TrafficByPod)>>,
}

/// What is known of a container.
#[derive(Clone, Debug)]
pub struct ContainerReading {
    /// The container.
    pub container: Arc<ContainerSnapshot>,
    /// From its cgroup; `None` when it does not run.
    pub sample: Option<Arc<Sample>>,
    /// Its writable layer; `None` before the first walk.
    pub layer: Option<LayerUsage>,
}

/// What is known of a pod.
#[derive(Clone, Debug)]
pub struct PodReading {
    /// The pod.
    pub pod: Arc<PodSnapshot>,
    /// From its cgroup; `None` when it has none of its own, or nothing is in it.
    pub sample: Option<Arc<Sample>>,
    /// Its interfaces, the default one first. Empty on the host's network.
    pub traffic: Vec<Traffic>,
    /// When the interfaces' counters were read, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// Its containers.
    pub containers: Vec<ContainerReading>,
}

impl Stats {
    /// Opens the room. [`Stats::sample`] should run beside it.
    pub fn new(options: Options) -> Self {
        let Options { pods, networks, naming, mode, filesystem } = options;
        let (cache, layers) = (Arc::new(Cache::new(mode)), Layers::start());
        let traffic = tokio::sync::Mutex::default();
        let (names, turn) = (Names::default(), Arc::new(Semaphore::new(1)));
        Self(Arc::new(Inner { pods, networks, naming, filesystem, cache, layers, names, turn, traffic }))
    }

    /// The file system that writable layers are on.
    pub fn filesystem(&self) -> &std::path::Path {
        &self.0.filesystem
    }

    /// That file system as a whole; nothing is known of it when its disk does not answer.
    pub async fn disk(&self) -> Disk {
        let inner = Arc::clone(&self.0);
        let look = disk::look(&self.0.turn, FRESH, move || inner.names.disk(&inner.filesystem));
        look.await.flatten().unwrap_or_default()
    }

    /// The name of a block device, by major and minor number.
    pub fn device(&self, number: (u32, u32)) -> String {
        self.0.names.name(number)
    }

    /// Samples for ever what rates are made of, so that the first who asks gets one.
    pub async fn sample(self) {
        let mut ticks = tokio::time::interval(SAMPLE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let pods = self.0.pods.pods();
            let mut known = HashSet::new();
            let mut targets = Vec::new();
            for pod in &pods {
                known.insert(pod.id.clone());
                targets.extend(self.pod_target(pod));
                for container in &pod.containers {
                    known.insert(container.id.clone());
                    targets.extend(container_target(container));
                    self.0.layers.first(&container.id, &container.upper);
                }
            }
            self.0.layers.keep(&known);
            let cache = Arc::clone(&self.0.cache);
            let _ = tokio::task::spawn_blocking(move || {
                cache.keep(&known);
                cache.sample(&targets);
            })
            .await;
        }
    }

    /// Readings of these containers, in their order.
    pub async fn containers(
        &self,
        wanted: Vec<Arc<ContainerSnapshot>>,
        depth: Depth,
    ) -> Vec<ContainerReading> {
        let targets: Vec<_> = wanted.iter().map(|container| container_target(container)).collect();
        let samples = self.read(targets, depth).await;
        wanted.into_iter().zip(samples).map(|(container, sample)| self.reading(container, sample)).collect()
    }

    /// Readings of these pods and their containers, in their order.
    pub async fn pods(&self, wanted: Vec<Arc<PodSnapshot>>, depth: Depth) -> Vec<PodReading> {
        let (at, traffic) = self.traffic(&wanted).await;
        let targets = wanted
            .iter()
            .flat_map(|pod| {
                let containers = pod.containers.iter().map(|container| container_target(container));
                // Metrics are of containers: of a pod there is its network.
                let own = if depth == Depth::Usage { self.pod_target(pod) } else { None };
                std::iter::once(own).chain(containers)
            })
            .collect();
        let mut samples = self.read(targets, depth).await.into_iter();
        wanted
            .into_iter()
            .map(|pod| {
                let sample = samples.next().flatten();
                let containers = pod
                    .containers
                    .iter()
                    .map(|container| self.reading(Arc::clone(container), samples.next().flatten()))
                    .collect();
                let traffic = traffic.get(&pod.id).cloned().unwrap_or_default();
                PodReading { pod, sample, traffic, at, containers }
            })
            .collect()
    }

    fn reading(&self, container: Arc<ContainerSnapshot>, sample: Option<Arc<Sample>>) -> ContainerReading {
        let ended = match container.state {
            ContainerState::Exited { finished_at, .. } => Some(finished_at),
            _ => None,
        };
        let layer = self.0.layers.usage(&container.id, &container.upper, ended);
        ContainerReading { container, sample, layer }
    }

    async fn read(&self, targets: Vec<Option<Target>>, depth: Depth) -> Vec<Option<Arc<Sample>>> {
        let (cache, count) = (Arc::clone(&self.0.cache), targets.len());
        tokio::task::spawn_blocking(move || cache.read(targets, depth))
            .await
            .unwrap_or_else(|_| vec![None; count])
    }

    /// The pod's own cgroup, where it has one: with systemd and no parent named, pods share a slice.
    fn pod_target(&self, pod: &PodSnapshot) -> Option<Target> {
        if !pod.ready {
            return None;
        }
        let parent = pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
        let (name, ours) = self.0.naming.pod(parent, &pod.id).ok()?;
        if parent.is_empty() && !ours {
            return None;
        }
        let path = self.0.naming.pod_path(&name).ok().filter(|path| path.components().next().is_some())?;
        Some(Target { id: pod.id.clone(), path, since: pod.created_at, pid: 0 })
    }

    /// Counters of interfaces, a second old at most, and when they were read: a rate is made of both. Whoever comes while they
    /// are read waits for the same answer.
    async fn traffic(&self, wanted: &[Arc<PodSnapshot>]) -> (i64, TrafficByPod) {
        if wanted.iter().all(|pod| pod.netns.is_none()) {
            return (crate::container::now(), Arc::default());
        }
        let mut kept = self.0.traffic.lock().await;
        if let Some((read, at, traffic)) = &*kept
            && read.elapsed() < FRESH
        {
            return (*at, Arc::clone(traffic));
        }
        let at = crate::container::now();
        match self.0.networks.traffic().await {
            Ok(traffic) => {
                let traffic = Arc::new(traffic);
                *kept = Some((Instant::now(), at, Arc::clone(&traffic)));
                (at, traffic)
            }
            Err(error) => {
                tracing::warn!(error = crate::error::chain(&error), "reading interface counters");
                (at, Arc::default())
            }
        }
    }
}

fn container_target(container: &ContainerSnapshot) -> Option<Target> {
    let ContainerState::Running { pid, started_at } = container.state else { return None };
    let path = PathBuf::from(&container.cgroups_path);
    Some(Target { id: container.id.clone(), path, since: started_at, pid })
}
