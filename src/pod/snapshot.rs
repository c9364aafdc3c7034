//! What is known of a pod, as lists and status calls read it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::ContainerSnapshot;
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
    /// By time of creation.
    pub containers: Vec<Arc<ContainerSnapshot>>,
}
