//! What can go wrong in a container's life.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::spec;
use crate::error::{Classify, Kind};
use crate::{cdi, cgroup, image, shim, store};

/// A step of a container's life failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is not on this node.
    #[error("image {reference:?} is not on this node: pull it first")]
    NoImage {
        /// As the request names it.
        reference: String,
    },
    /// The directory the log is to be written in is missing.
    #[error("the log directory {path} does not exist: create it before the container")]
    NoLogDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The container whose PID namespace is asked for does not run.
    #[error("target container {id} does not run: its PID namespace can't be joined")]
    NoTarget {
        /// The container asked for.
        id: String,
    },
    /// A file or directory could not be used.
    #[error("{action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The OCI specification could not be written as JSON, or read back.
    #[error("{action} {path}")]
    Json {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The request describes a container that can't be.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// The image's layers could not be had.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The kernel refuses new limits.
    #[error(transparent)]
    Limits(cgroup::Error),
    /// The cgroup can't be named.
    #[error(transparent)]
    Cgroup(#[from] cgroup::DriverError),
    /// The shim could not do it.
    #[error(transparent)]
    Shim(#[from] shim::Error),
    /// The container could not be created or its command not be run.
    #[error("container {id} cannot run")]
    CannotRun {
        /// The container.
        id: String,
        /// The shim's reason.
        #[source]
        source: Arc<shim::Error>,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] store::Error),
    /// It did not end although it was killed.
    #[error(
        "container {id} did not end within {}s of SIGKILL: a process of it may be stuck in the kernel (see /proc/{pid}/stack)",
        .limit.as_secs()
    )]
    StillRuns {
        /// The container.
        id: String,
        /// Its first process.
        pid: u32,
        /// The time it had.
        limit: Duration,
    },
    /// The command of an exec did not end in time. All it started was killed.
    #[error("command {command:?} in container {id} timed out after {}s", .limit.as_secs_f64())]
    ExecTimedOut {
        /// The container.
        id: String,
        /// The command's first word.
        command: String,
        /// The time it had.
        limit: Duration,
    },
    /// Somebody with a say in it refused.
    #[error(transparent)]
    Refused(#[from] super::refusal::Refusal),
    /// A device by name could not be had.
    #[error(transparent)]
    Device(#[from] cdi::Error),
    /// A checkpoint could not be made or used.
    #[error(transparent)]
    Checkpoint(#[from] super::checkpoint::Error),
    /// A worker thread was stopped.
    #[error("{0} was cut off by the daemon's shutdown")]
    Interrupted(&'static str),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoImage { .. } => Kind::NotFound,
            Self::NoLogDirectory { .. } => Kind::InvalidArgument,
            Self::NoTarget { .. } => Kind::FailedPrecondition,
            Self::Path { .. } | Self::Json { .. } => Kind::Internal,
            Self::Spec(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Limits(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Shim(error) => error.kind(),
            Self::CannotRun { source, .. } => source.kind(),
            Self::Record(error) => error.kind(),
            Self::StillRuns { .. } | Self::ExecTimedOut { .. } => Kind::DeadlineExceeded,
            Self::Refused(error) => error.kind(),
            Self::Device(error) => error.kind(),
            Self::Checkpoint(error) => error.kind(),
            Self::Interrupted(_) => Kind::Cancelled,
        }
    }
}
