//! What the tasks of all pods share: the rooms below, and who is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_cni::Controller;
use parking_lot::{Mutex, RwLock};

use super::error::Error;
use super::event::Announcer;
use super::lifecycle::{Lifecycle, Operation};
use super::request::Handle;
use super::runs::{Key, Runs};
use crate::cni::Cni;
use crate::container::{Handler, Tools};
use crate::meter::Recoveries;
use crate::progress::Board;
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::store::Records;

/// What the tasks of all pods share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tools: Arc<Tools>,
    pub(super) networks: Controller,
    pub(super) default_network: String,
    pub(super) cni: Cni,
    /// Records of pods.
    pub(super) records: Records,
    pub(super) boot_id: String,
    pub(super) handlers: BTreeMap<String, Arc<Handler>>,
    pub(super) default_handler: String,
    pub(super) pods: RwLock<HashMap<String, Handle>>,
    /// Pod of each container.
    pub(super) containers: RwLock<HashMap<String, String>>,
    pub(super) runs: Mutex<Runs>,
    pub(super) events: Announcer,
    /// Who is told of each step, if anybody can be.
    pub(super) lifecycle: Option<Arc<dyn Lifecycle>>,
    pub(super) recoveries: Recoveries,
    pub(super) board: Board,
}

impl Shared {
    /// The handler that a request names.
    pub(super) fn handler(&self, name: &str) -> Result<Arc<Handler>, Error> {
        let wanted = if name.is_empty() { &self.default_handler } else { name };
        self.handlers.get(wanted).cloned().ok_or_else(|| Error::NoHandler {
            name: name.to_owned(),
            known: self.handlers.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    /// Begins an operation that somebody is to be told of. `None` when nobody is there, and nobody can come.
    pub(super) fn begin(&self) -> Option<Arc<dyn Operation>> {
        self.lifecycle.as_ref().map(|lifecycle| lifecycle.begin())
    }

    pub(super) fn register(&self, id: &str, handle: Handle) {
        self.pods.write().insert(id.to_owned(), handle);
    }

    /// A pod is gone.
    pub(super) fn forget(&self, id: &str, config: &PodSandboxConfig) {
        self.pods.write().remove(id);
        if let Some(metadata) = &config.metadata {
            self.runs.lock().free(&Key::new(metadata), id);
        }
    }

    pub(super) fn index(&self, container: &str, pod: &str) {
        self.containers.write().insert(container.to_owned(), pod.to_owned());
    }

    pub(super) fn unindex(&self, container: &str) {
        self.containers.write().remove(container);
    }

    pub(super) fn pod(&self, id: &str) -> Option<Handle> {
        let pods = self.pods.read();
        crate::id::resolve(id, pods.keys()).and_then(|id| pods.get(id)).cloned()
    }

    /// Why there is no pod of that id.
    pub(super) fn no_pod(&self, id: &str) -> Error {
        missing("pod sandbox", id, crate::id::is_ambiguous(id, self.pods.read().keys()))
    }

    /// Why there is no container of that id.
    pub(super) fn no_container(&self, id: &str) -> Error {
        missing("container", id, crate::id::is_ambiguous(id, self.containers.read().keys()))
    }

    /// The container's full id, and its pod.
    pub(super) fn container(&self, id: &str) -> Option<(String, Handle)> {
        let containers = self.containers.read();
        let id = crate::id::resolve(id, containers.keys())?;
        let handle = self.pod(containers.get(id)?)?;
        Some((id.clone(), handle))
    }
}

fn missing(what: &'static str, id: &str, ambiguous: bool) -> Error {
    let id = id.to_owned();
    if ambiguous { Error::Ambiguous { what, id } } else { Error::NotFound { what, id } }
}
