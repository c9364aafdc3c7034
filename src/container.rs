//! Containers: what one is made of, and each step of its life.
//!
//! ```text
//!            create                 start                  ends
//! (record) ---------> Created ---------------> Running ---------> Exited ---> (removed)
//!                        |   cannot run: ContainerCannotRun          ^
//!                        +-------------------------------------------+
//! ```
//!
//! The steps are functions over [`Tools`]; none keeps state. Which step may be taken when is decided by the task of the
//! pod that a container belongs to (the `pod` room): it alone changes a container's record.

mod adjust;
mod checkpoint;
mod copy;
mod create;
mod criu;
mod error;
mod exec;
mod exit;
mod refusal;
mod relabel;
mod remove;
mod restore;
pub(crate) mod sandbox;
mod snapshot;
pub mod spec;
mod start;
mod stop;
mod tools;
mod update;
mod volumes;

pub(crate) use adjust::Adjust;
pub use checkpoint::Error as CheckpointError;
pub(crate) use checkpoint::{Subject, checkpoint};
pub use copy::{Error as CopyError, Files, Found, PLACES as COPY_PLACES};
pub(crate) use create::{Creation, Making, creation_done, creation_under_way, make};
pub use criu::{CheckpointOptions, CheckpointState};
pub use error::Error;
pub use exec::{ExecOutput, MAX_OUTPUT};
pub(crate) use exec::{Interactive, Streams, exec_start, exec_sync};
pub(crate) use exit::{Ended, clean_up, ended_unseen, now, watch};
pub use refusal::Refusal;
pub(crate) use relabel::relabel;
pub(crate) use remove::{end_without_shim, remove, tree as delete_tree};
pub(crate) use snapshot::Layout;
pub use snapshot::{ContainerSnapshot, ContainerState};
pub(crate) use spec::mounted_below;
pub(crate) use start::start;
pub(crate) use stop::{kill, stop};
pub use tools::{Handler, Restores};
pub(crate) use tools::{Surroundings, Tools};
pub(crate) use update::{merge, merge_resources, update};
pub(crate) use volumes::fill as fill_from_image;
