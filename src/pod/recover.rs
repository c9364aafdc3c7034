//! Start-up: the pods' records held against the world.
//!
//! What was whole goes on; what was half made or half removed is undone; what ended unseen is settled; what nobody's
//! record speaks of is removed. A normal stop is not special: this is the only repair there is.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;

use super::error::Error;
use super::pods::Pods;
use super::runs::{Key, Run};
use super::sandbox;
use super::shared::Shared;
use super::slot::Slot;
use super::task;
use crate::container::{self, Ended};
use crate::image::ChainId;
use crate::proto::berth::v1::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use crate::shim::{Shim, TaskState};

/// Pods that are looked at side by side: one whose shim is stuck holds nobody up.
const AT_ONCE: usize = 32;
/// How long a shim has to say how its container is.
const ANSWER: Duration = Duration::from_secs(4);
/// A shim that is just creating its container says so only when it is done.
const SETTLE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(50);

/// What start-up found and did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Ids of the pods that go on, ready or not.
    pub pods: HashSet<String>,
    /// Containers that go on, whatever their state.
    pub containers: usize,
    /// Pods and containers that were undone or removed, for the log.
    pub undone: Vec<String>,
    /// What could not be undone now.
    pub errors: Vec<Error>,
}

impl Pods {
    /// Takes up the pods that were there when the daemon ended. Runs once, before the first call is served.
    ///
    /// # Errors
    /// [`Error::Record`] when the records can't be read at all; what goes wrong with one pod stands in the result.
    pub async fn recover(&self) -> Result<Recovered, Error> {
        let shared = &self.shared;
        let mut found = Recovered::default();
        empty_trash(shared);
        let pods = shared.records.load::<PodRecord>()?;
        let containers = shared.tools.records.load::<ContainerRecord>()?;
        for id in pods.damaged.into_iter().chain(containers.damaged) {
            tracing::warn!(id, "the record was torn: what it owned is removed");
            found.undone.push(id);
        }
        let mut by_pod: HashMap<String, Vec<ContainerRecord>> = HashMap::new();
        for (_, record) in containers.records {
            by_pod.entry(record.pod_id.clone()).or_default().push(record);
        }
        let mut owned: HashSet<String> = HashSet::new();
        let pods: Vec<_> = pods
            .records
            .into_iter()
            .map(|(id, record)| (record, by_pod.remove(&id).unwrap_or_default()))
            .collect();
        let taking = pods.into_iter().map(|(record, containers)| take_up(shared, record, containers));
        let mut taken = futures::stream::iter(taking).buffer_unordered(AT_ONCE);
        while let Some((one, ids)) = taken.next().await {
            found.add(one);
            owned.extend(ids);
        }
        let stray = by_pod.into_values().flatten().collect();
        found.add(undo_containers(shared, stray).await);
        self.sweep(&owned, &mut found).await;
        Ok(found)
    }

    /// Removes directories that no record speaks of.
    async fn sweep(&self, owned: &HashSet<String>, found: &mut Recovered) {
        let shared = &self.shared;
        let tools = &shared.tools;
        let bundles = unowned(&tools.state.join("containers"), owned).into_iter().map(|id| {
            let cgroups_path = cgroups_path(&tools.layout(&id).bundle);
            ContainerRecord { cgroups_path, id, ..Default::default() }
        });
        found.add(undo_containers(shared, bundles.collect()).await);
        let layers = unowned(&tools.root.join("containers"), owned).into_iter();
        let layers = layers.map(|id| ContainerRecord { id, ..Default::default() });
        found.add(undo_containers(shared, layers.collect()).await);
        for id in unowned(&tools.state.join("pods"), owned) {
            undo_pod(shared, &PodRecord { id, ..Default::default() }, found).await;
        }
    }
}

impl Recovered {
    fn add(&mut self, other: Self) {
        self.pods.extend(other.pods);
        self.containers += other.containers;
        self.undone.extend(other.undone);
        self.errors.extend(other.errors);
    }
}

/// Returns what came of a pod, and the ids of what goes on.
async fn take_up(
    shared: &Arc<Shared>,
    mut record: PodRecord,
    containers: Vec<ContainerRecord>,
) -> (Recovered, Vec<String>) {
    let (mut found, mut owned) = (Recovered::default(), Vec::new());
    let config = Arc::new(record.config.clone().unwrap_or_default());
    if matches!(record.phase(), PodPhase::PodCreating | PodPhase::PodRemoving) {
        found.add(undo_containers(shared, containers).await);
        undo_pod(shared, &record, &mut found).await;
        return (found, owned);
    }
    let handler = match shared.handler(&record.runtime_handler).or_else(|_| shared.handler("")) {
        Ok(handler) => handler,
        Err(error) => {
            found.errors.push(error);
            return (found, owned);
        }
    };
    let mut left = false;
    if record.phase() == PodPhase::PodReady
        && !(sandbox::intact(shared, &record, &config)
            && (!handler.sandbox || container::sandbox::runs(&shared.tools, &record.id, ANSWER).await))
    {
        tracing::info!(
            pod = record.id,
            "the pod's namespaces, or what stands for it, are gone: it is not ready"
        );
        let errors = sandbox::stop(shared, &record).await;
        left = !errors.is_empty();
        found.errors.extend(errors);
        record.phase = PodPhase::PodNotReady.into();
        found.errors.extend(shared.records.put(&record.id, &record).await.map_err(Error::Record).err());
    }
    let half = |container: &ContainerRecord| {
        matches!(container.phase(), ContainerPhase::ContainerCreating | ContainerPhase::ContainerRemoving)
    };
    let (half, whole): (Vec<_>, Vec<_>) = containers.into_iter().partition(half);
    owned.extend(whole.iter().map(|container| container.id.clone()));
    let settling = join_all(whole.into_iter().map(|container| settle(shared, container)));
    let (undone, slots) = tokio::join!(undo_containers(shared, half), settling);
    found.add(undone);
    owned.push(record.id.clone());
    found.pods.insert(record.id.clone());
    found.containers += slots.len();
    if let Some(metadata) = &config.metadata {
        let run = Run::found(record.id.clone(), Arc::clone(&config), record.runtime_handler.clone());
        shared.runs.lock().insert(Key::new(metadata), run);
    }
    let id = record.id.clone();
    let surroundings = Arc::new(sandbox::surroundings(shared, &record, config, handler));
    let start = task::Start { record, surroundings, slots, left };
    shared.register(&id, task::spawn(Arc::clone(shared), start));
    (found, owned)
}

/// Finds out what became of a container.
async fn settle(shared: &Arc<Shared>, mut record: ContainerRecord) -> Slot {
    let tools = &shared.tools;
    let layout = tools.layout(&record.id);
    let chain: Vec<ChainId> = record.chain_ids.iter().filter_map(|text| text.parse().ok()).collect();
    let hold = tools.images.hold_chains(&chain);
    let mut shim = None;
    let mut creation = None;
    let mut ended = None;
    if record.phase() == ContainerPhase::ContainerExited {
        if layout.bundle.join("shim.sock").exists() {
            container::end_without_shim(tools, &record).await;
        }
    } else {
        match look(&record.id, &layout.bundle).await {
            // It is there, and busy with something that takes long: it will tell in time.
            Look::Silent(connection) => {
                if record.phase() == ContainerPhase::ContainerCreated {
                    creation = Some(container::creation_under_way(connection.clone()));
                }
                shim = Some(connection);
            }
            Look::Says(connection, TaskState::Created) => {
                creation = Some(container::creation_done(record.pid));
                record.phase = ContainerPhase::ContainerCreated.into();
                shim = Some(connection);
            }
            Look::Says(connection, TaskState::Running { pid }) => {
                record.phase = ContainerPhase::ContainerRunning.into();
                record.pid = pid;
                if record.started_at == 0 {
                    record.started_at = container::now();
                }
                // Their callers went with the daemon that crashed.
                if let Err(error) = connection.end_execs().await {
                    tracing::debug!(container = record.id, %error, "ending what was executed in the container");
                }
                shim = Some(connection);
            }
            Look::Says(_, TaskState::Stopped { .. }) => ended = Some(container::ended_unseen(&layout.bundle)),
            Look::Gone if record.phase() == ContainerPhase::ContainerCreated => {
                ended = Some(Ended {
                    exit_code: 128,
                    finished_at: container::now(),
                    reason: "ContainerCannotRun",
                    message: "the daemon ended while the container was being created".to_owned(),
                    shim_lost: false,
                });
            }
            Look::Gone => ended = Some(container::ended_unseen(&layout.bundle)),
        }
    }
    let mut slot = Slot::new(record, layout, shim, creation, hold);
    if let Some(ended) = ended {
        slot.ended(ended);
        container::end_without_shim(tools, &slot.record).await;
    }
    if let Err(error) = tools.records.put(&slot.record.id, &slot.full_record()).await {
        tracing::error!(
            container = slot.record.id,
            error = crate::error::chain(&error),
            "writing the record"
        );
    }
    slot
}

/// What came of asking a shim.
enum Look {
    /// It answers.
    Says(Shim, TaskState),
    /// It listens and does not answer: it is busy, or stuck with a disk or a mount.
    Silent(Shim),
    /// There is none, or it has nothing.
    Gone,
}

/// Asks a container's shim for its state, giving it time to be done with a creation.
async fn look(id: &str, bundle: &Path) -> Look {
    let Ok(shim) = Shim::connect(id, bundle) else { return Look::Gone };
    let deadline = tokio::time::Instant::now() + SETTLE;
    loop {
        let Ok(answer) = tokio::time::timeout(ANSWER, shim.state()).await else {
            tracing::warn!(container = id, "the shim does not answer: the container is left as it was");
            return Look::Silent(shim);
        };
        match answer {
            Ok(state) => return Look::Says(shim, state),
            Err(error) if error.is_gone() && tokio::time::Instant::now() < deadline => {
                if Shim::connect(id, bundle).is_err() {
                    return Look::Gone;
                }
                tokio::time::sleep(STEP).await;
            }
            Err(error) => {
                tracing::warn!(container = id, error = %error, "asking the shim for the container's state");
                return Look::Gone;
            }
        }
    }
}

async fn undo_containers(shared: &Arc<Shared>, records: Vec<ContainerRecord>) -> Recovered {
    let undoing = records.into_iter().map(async |record| {
        container::end_without_shim(&shared.tools, &record).await;
        (container::remove(&shared.tools, &record).await, record.id)
    });
    let mut undone = futures::stream::iter(undoing).buffer_unordered(AT_ONCE);
    let mut found = Recovered::default();
    while let Some((errors, id)) = undone.next().await {
        found.errors.extend(errors.into_iter().map(Error::Container));
        found.undone.push(id);
    }
    found
}

async fn undo_pod(shared: &Arc<Shared>, record: &PodRecord, found: &mut Recovered) {
    found.errors.extend(sandbox::unmake(shared, record).await);
    found.undone.push(record.id.clone());
}

/// Names in `directory` that no record speaks of.
pub(super) fn unowned(directory: &Path, owned: &HashSet<String>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !owned.contains(name)).collect()
}

/// The cgroup of a container whose record is lost, from its bundle.
fn cgroups_path(bundle: &Path) -> String {
    let spec = fs::read(bundle.join("config.json")).ok();
    let spec: Option<serde_json::Value> = spec.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    spec.and_then(|spec| Some(spec.pointer("/linux/cgroupsPath")?.as_str()?.to_owned())).unwrap_or_default()
}

fn empty_trash(shared: &Arc<Shared>) {
    // What is there now: what comes while it is emptied may be somebody's work.
    let Ok(entries) = fs::read_dir(shared.tools.trash()) else { return };
    let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    tokio::task::spawn_blocking(move || {
        for path in paths {
            if let Err(error) = container::delete_tree(&path) {
                tracing::warn!(error = crate::error::chain(&error), "emptying the trash");
            }
        }
    });
}
