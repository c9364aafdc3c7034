//! Start-up: the pods' records held against the world.
//!
//! What was whole goes on; what was half made or half removed is undone; what ended unseen is settled; what nobody's
//! record speaks of is removed. A normal stop is not special: this is the only repair there is.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
        for (id, record) in pods.records {
            let containers = by_pod.remove(&id).unwrap_or_default();
            take_up(shared, record, containers, &mut found, &mut owned).await;
        }
        for record in by_pod.into_values().flatten() {
            undo_container(shared, &record, &mut found).await;
        }
        self.sweep(&owned, &mut found).await;
        Ok(found)
    }

    /// Removes directories that no record speaks of.
    async fn sweep(&self, owned: &HashSet<String>, found: &mut Recovered) {
        let shared = &self.shared;
        let tools = &shared.tools;
        for id in unowned(&tools.state.join("containers"), owned) {
            let bundle = tools.layout(&id).bundle;
            let record = ContainerRecord { cgroups_path: cgroups_path(&bundle), id, ..Default::default() };
            undo_container(shared, &record, found).await;
        }
        for id in unowned(&tools.root.join("containers"), owned) {
            undo_container(shared, &ContainerRecord { id, ..Default::default() }, found).await;
        }
        for id in unowned(&tools.state.join("pods"), owned) {
            undo_pod(shared, &PodRecord { id, ..Default::default() }, found).await;
        }
    }
}

async fn take_up(
    shared: &Arc<Shared>,
    mut record: PodRecord,
    containers: Vec<ContainerRecord>,
    found: &mut Recovered,
    owned: &mut HashSet<String>,
) {
    let config = Arc::new(record.config.clone().unwrap_or_default());
    if matches!(record.phase(), PodPhase::PodCreating | PodPhase::PodRemoving) {
        for container in containers {
            undo_container(shared, &container, found).await;
        }
        undo_pod(shared, &record, found).await;
        return;
    }
    let handler = match shared.handler(&record.runtime_handler).or_else(|_| shared.handler("")) {
        Ok(handler) => handler,
        Err(error) => {
            found.errors.push(error);
            return;
        }
    };
    let mut left = false;
    if record.phase() == PodPhase::PodReady
        && !(sandbox::intact(shared, &record, &config)
            && (!handler.sandbox || container::sandbox::runs(&shared.tools, &record.id).await))
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
    let mut slots = Vec::new();
    for container in containers {
        if matches!(container.phase(), ContainerPhase::ContainerCreating | ContainerPhase::ContainerRemoving)
        {
            undo_container(shared, &container, found).await;
        } else {
            owned.insert(container.id.clone());
            slots.push(settle(shared, container).await);
        }
    }
    owned.insert(record.id.clone());
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
            Some((connection, TaskState::Created)) => {
                creation = Some(container::creation_done(record.pid));
                record.phase = ContainerPhase::ContainerCreated.into();
                shim = Some(connection);
            }
            Some((connection, TaskState::Running { pid })) => {
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
            Some((_, TaskState::Stopped { .. })) => ended = Some(container::ended_unseen(&layout.bundle)),
            None if record.phase() == ContainerPhase::ContainerCreated => {
                ended = Some(Ended {
                    exit_code: 128,
                    finished_at: container::now(),
                    reason: "ContainerCannotRun",
                    message: "the daemon ended while the container was being created".to_owned(),
                    shim_lost: false,
                });
            }
            None => ended = Some(container::ended_unseen(&layout.bundle)),
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

/// Asks a container's shim for its state, giving it time to be done with a creation. `None` when no shim answers, or it
/// has nothing.
async fn look(id: &str, bundle: &Path) -> Option<(Shim, TaskState)> {
    let shim = Shim::connect(id, bundle).ok()?;
    let deadline = tokio::time::Instant::now() + SETTLE;
    loop {
        match shim.state().await {
            Ok(state) => return Some((shim, state)),
            Err(error) if error.is_gone() && tokio::time::Instant::now() < deadline => {
                Shim::connect(id, bundle).ok()?;
                tokio::time::sleep(STEP).await;
            }
            Err(error) => {
                tracing::warn!(container = id, error = %error, "asking the shim for the container's state");
                return None;
            }
        }
    }
}

async fn undo_container(shared: &Arc<Shared>, record: &ContainerRecord, found: &mut Recovered) {
    container::end_without_shim(&shared.tools, record).await;
    let errors = container::remove(&shared.tools, record).await;
    found.errors.extend(errors.into_iter().map(Error::Container));
    found.undone.push(record.id.clone());
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
    let trash = shared.tools.trash();
    tokio::task::spawn_blocking(move || {
        let Ok(entries) = fs::read_dir(&trash) else { return };
        for entry in entries.flatten() {
            if let Err(error) = container::delete_tree(&entry.path()) {
                tracing::warn!(error = crate::error::chain(&error), "emptying the trash");
            }
        }
    });
}
