//! What every step of a container's life works with.

use std::path::PathBuf;
use std::sync::Arc;

use super::criu::CheckpointOptions;
use super::snapshot::Layout;
use super::spec::{self, HandlerOptions};
use crate::cdi;
use crate::cgroup;
use crate::image::Images;
use crate::meter::Stages;
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::shim::{Backend, Launcher};
use crate::store::Records;

/// A runtime handler: who creates a container, and what its specification may hold.
#[derive(Clone, Debug)]
pub struct Handler {
    /// Name, as RuntimeClass and the configuration know it.
    pub name: String,
    /// Who creates containers.
    pub backend: Backend,
    /// Whether a pod begins with a container that stands for its sandbox.
    pub sandbox: bool,
    /// Whether it makes containers from checkpoints.
    pub restores: Restores,
    /// What specifications may hold.
    pub options: HandlerOptions,
}

/// Whether a handler makes containers from checkpoints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Restores {
    /// Where criu is on the node.
    Yes,
    /// Never.
    No {
        /// As its program says it.
        why: String,
    },
}

impl Default for Restores {
    fn default() -> Self {
        Self::No { why: "it does not say that it can".to_owned() }
    }
}

/// The rooms below, and where things are kept.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Kept over a reboot.
    pub(crate) root: PathBuf,
    /// Gone at reboot.
    pub(crate) state: PathBuf,
    pub(crate) images: Images,
    pub(crate) launcher: Launcher,
    /// Records of containers.
    pub(crate) records: Records,
    pub(crate) host: spec::Host,
    pub(crate) naming: cgroup::Naming,
    /// Times the steps.
    pub(crate) stages: Stages,
    /// Devices by name.
    pub(crate) devices: cdi::Registry,
    /// Whether and by what there are checkpoints.
    pub(crate) checkpoint: CheckpointOptions,
}

impl Tools {
    /// Where container `id` has its things.
    pub(crate) fn layout(&self, id: &str) -> Layout {
        Layout {
            bundle: self.state.join("containers").join(id),
            writable: self.root.join("containers").join(id),
        }
    }

    /// Where directories wait to be deleted. On the same filesystem as the writable layers.
    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

/// The pod around a container.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) pod_id: String,
    pub(crate) config: Arc<PodSandboxConfig>,
    pub(crate) handler: Arc<Handler>,
    /// Pins of the pod's namespaces; `None` where it uses the host's.
    pub(crate) user: Option<PathBuf>,
    pub(crate) network: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    pub(crate) pid: Option<PathBuf>,
    /// Files of the pod that its containers see.
    pub(crate) hosts: Option<PathBuf>,
    pub(crate) hostname: Option<PathBuf>,
    pub(crate) resolv_conf: Option<PathBuf>,
    pub(crate) shm: Option<PathBuf>,
}
