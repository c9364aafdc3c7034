//! Pods: their sandboxes, and the one task that owns every transition of a pod and its containers.
//!
//! ```text
//!           run                      stop                    remove
//! (record) ------> Ready ----------------------> NotReady ----------> (removed)
//!    |               |  namespaces found missing at start  ^
//!    | fails: undone +-------------------------------------+
//! ```
//!
//! [`Pods`] is the handle that the faces hold. `run_pod_sandbox` makes the sandbox (`sandbox`: namespaces, files, network)
//! and starts its task (`task`); every other call is a request to that task. What the task knows is published as a
//! [`PodSnapshot`]: lists and status calls read it and never wait for a pod.
//!
//! There is no pause container. Namespaces are pinned by bind mounts (`namespaces`); only a pod that shares one PID
//! namespace has a process, the shim's program acting as PID 1 (`init`).

mod error;
mod event;
mod files;
mod helper;
mod host_files;
mod init;
mod leftovers;
mod lifecycle;
mod namespaces;
mod network;
mod pods;
mod recover;
mod request;
mod runs;
mod sandbox;
mod shared;
mod slot;
mod snapshot;
mod task;

pub use error::Error;
pub use event::{EventKind, PodEvent};
pub use leftovers::{Leftover, Shims};
pub use lifecycle::{ContainerStep, Lifecycle, Operation, PodStep, Told};
pub use namespaces::Error as NamespaceError;
pub use network::{PodCidrs, parse_mac};
pub use pods::{Options, Pods};
pub use recover::Recovered;
pub use snapshot::PodSnapshot;

pub use crate::container::{ContainerSnapshot, ContainerState, ExecOutput, Handler};
