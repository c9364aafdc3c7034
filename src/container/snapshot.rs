//! What is known of a container, as lists and status calls read it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::proto::berth::v1::{ContainerPhase, ContainerRecord};
use crate::proto::runtime::v1::{ContainerConfig, ContainerUser, PodSandboxConfig};
use crate::shim::Shim;

/// State of a container, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, its command not yet run.
    Created,
    /// Its command runs.
    Running {
        /// First process, as the host numbers it.
        pid: u32,
        /// Nanoseconds since the Unix epoch.
        started_at: i64,
    },
    /// Its command has ended, or never could be run.
    Exited {
        /// Nanoseconds since the Unix epoch; 0 when it never ran.
        started_at: i64,
        /// Nanoseconds since the Unix epoch.
        finished_at: i64,
        /// As a shell would report it: 128 + n for signal n.
        exit_code: i32,
        /// `Completed`, `Error`, `OOMKilled` or `ContainerCannotRun`.
        reason: String,
        /// For people.
        message: String,
    },
    /// Berth lost sight of it; recovery settles it.
    Unknown,
}

/// A container at one moment.
#[derive(Clone, Debug)]
pub struct ContainerSnapshot {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The pod sandbox it belongs to.
    pub pod_id: String,
    /// As CreateContainer gave it.
    pub config: Arc<ContainerConfig>,
    /// "sha256:…" of the image's configuration.
    pub image_id: String,
    /// Reference of the image, by digest where it has one.
    pub image_ref: String,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// What it is doing.
    pub state: ContainerState,
    /// Where its log is written; `None` when the pod or the container names no path.
    pub log_path: Option<PathBuf>,
    /// The user its first process has.
    pub user: Option<ContainerUser>,
    /// Signal that asks it to end, as a number.
    pub stop_signal: i32,
    /// Its cgroup as the OCI spec names it.
    pub cgroups_path: String,
    /// Its OCI bundle directory.
    pub bundle: PathBuf,
    /// Its writable layer.
    pub upper: PathBuf,
    /// Connection to its shim, while it has one.
    pub(crate) shim: Option<Shim>,
}

/// Directories of one container.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Under the state directory: OCI bundle, gone at reboot.
    pub(crate) bundle: PathBuf,
    /// Under the root directory: what the overlay writes.
    pub(crate) writable: PathBuf,
}

impl Layout {
    pub(crate) fn upper(&self) -> PathBuf {
        self.writable.join("fs")
    }

    /// Where the directories of declared volumes are.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.writable.join("volumes")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.writable.join("work")
    }
}

impl ContainerState {
    pub(crate) fn of(record: &ContainerRecord) -> Self {
        match record.phase() {
            ContainerPhase::ContainerCreating | ContainerPhase::ContainerCreated => Self::Created,
            ContainerPhase::ContainerRunning => {
                Self::Running { pid: record.pid, started_at: record.started_at }
            }
            ContainerPhase::ContainerExited => Self::Exited {
                started_at: record.started_at,
                finished_at: record.finished_at,
                exit_code: record.exit_code,
                reason: record.reason.clone(),
                message: record.message.clone(),
            },
            ContainerPhase::ContainerRemoving => Self::Unknown,
        }
    }
}

impl ContainerSnapshot {
    pub(crate) fn new(
        record: &ContainerRecord,
        config: Arc<ContainerConfig>,
        pod: &PodSandboxConfig,
        layout: &Layout,
        shim: Option<Shim>,
    ) -> Self {
        Self {
            id: record.id.clone(),
            pod_id: record.pod_id.clone(),
            log_path: log_path(pod, &config),
            config,
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            created_at: record.created_at,
            state: ContainerState::of(record),
            user: record.user.clone(),
            stop_signal: record.stop_signal,
            cgroups_path: record.cgroups_path.clone(),
            bundle: layout.bundle.clone(),
            upper: layout.upper(),
            shim,
        }
    }
}

/// The log's path: the pod's directory joined with the container's name for it. Either being empty means that no log is
/// kept: an empty path is never joined with anything.
pub(crate) fn log_path(pod: &PodSandboxConfig, container: &ContainerConfig) -> Option<PathBuf> {
    if pod.log_directory.is_empty() || container.log_path.is_empty() {
        return None;
    }
    // Relative to the directory whatever it begins with: joining with an absolute path would drop the directory.
    Some(PathBuf::from(&pod.log_directory).join(container.log_path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_log_path_means_no_log() {
        let pod =
            |directory: &str| PodSandboxConfig { log_directory: directory.into(), ..Default::default() };
        let container = |path: &str| ContainerConfig { log_path: path.into(), ..Default::default() };
        assert_eq!(log_path(&pod("/var/log/pods/a"), &container("")), None);
        assert_eq!(log_path(&pod(""), &container("c/0.log")), None);
        assert_eq!(
            log_path(&pod("/var/log/pods/a"), &container("c/0.log")),
            Some(PathBuf::from("/var/log/pods/a/c/0.log"))
        );
        assert_eq!(log_path(&pod("/logs"), &container("/c.log")), Some(PathBuf::from("/logs/c.log")));
    }
}
