//! What is known of a pod, as lists and status calls read it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::{ContainerSnapshot, Surroundings};
use crate::proto::berth::v1::PodRecord;
use crate::proto::runtime::v1::PodSandboxConfig;

/// A pod sandbox and its containers at one moment.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// As RunPodSandbox gave it.
    pub config: Arc<PodSandboxConfig>,
    /// Runtime handler as the request named it: empty for the default one.
    pub runtime_handler: String,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Whether containers can be made in it.
    pub ready: bool,
    /// Its addresses, the first family of the default network first. Empty on the host's network.
    pub addresses: Vec<IpAddr>,
    /// Pin of its network namespace; `None` on the host's network.
    pub netns: Option<PathBuf>,
    /// Pins of its own namespaces, by kind as the OCI runtime specification names it.
    pub namespaces: Vec<(&'static str, PathBuf)>,
    /// By time of creation.
    pub containers: Vec<Arc<ContainerSnapshot>>,
}

impl PodSnapshot {
    pub(super) fn new(
        record: &PodRecord,
        surroundings: &Surroundings,
        ready: bool,
        containers: Vec<Arc<ContainerSnapshot>>,
    ) -> Self {
        let namespaces = [
            ("network", &surroundings.network),
            ("ipc", &surroundings.ipc),
            ("uts", &surroundings.uts),
            ("pid", &surroundings.pid),
        ];
        Self {
            id: record.id.clone(),
            config: Arc::clone(&surroundings.config),
            runtime_handler: record.runtime_handler.clone(),
            created_at: record.created_at,
            ready,
            addresses: record.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
            netns: surroundings.network.clone(),
            namespaces: namespaces
                .into_iter()
                .filter_map(|(kind, path)| Some((kind, path.clone()?)))
                .collect(),
            containers,
        }
    }
}
