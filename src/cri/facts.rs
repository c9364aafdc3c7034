//! What does not change while the daemon runs and calls report.

use crate::config::CgroupDriver;

/// Facts of this daemon, gathered once at start.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Version of Berth.
    pub version: String,
    /// Cgroup driver in use: never [`CgroupDriver::Auto`].
    pub cgroup_driver: CgroupDriver,
    /// Name of the default handler.
    pub default_runtime: String,
    /// All handlers.
    pub handlers: Vec<Handler>,
    /// Whether the supplementary groups policy of a pod is obeyed (KEP-3619).
    pub supplemental_groups_policy: bool,
    /// The configuration, for verbose status.
    pub config: serde_json::Value,
    /// Features of the kernel, for verbose status.
    pub features: serde_json::Value,
    /// Networks and their addresses, for verbose status.
    pub network: serde_json::Value,
}

/// A runtime handler and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// As a RuntimeClass names it.
    pub name: String,
    /// Recursive read-only mounts (KEP-3857).
    pub recursive_read_only_mounts: bool,
    /// User namespaces (KEP-127).
    pub user_namespaces: bool,
}
