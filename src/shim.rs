//! The daemon's side of the shims: start one, speak to it, read what it left behind.
//!
//! Every container has one `berth-shim` process. It outlives the daemon; after a restart the daemon finds it again by
//! the socket in the container's bundle directory. The protocol is containerd's shim v2 (ttrpc, `containerd.task.v3.Task`)
//! plus calls of ours to reopen a log and to attach clients.
//!
//! A handler may name another shim of that protocol. Ours then calls it, with the container's streams, log and exit status in
//! its own hands as ever: for the daemon there is no difference.
//!
//! A bundle directory holds `config.json` (the OCI spec), `rootfs/` (mount point), `shim.sock`, `shim.log`, and, once the
//! container ended, `exit.json`.

mod attach;
mod checkpoint;
mod client;
mod criu;
mod error;
pub mod events;
mod exit;
mod launch;
mod probe;
mod program;
mod socket;
mod timing;

pub(crate) use attach::{Keyboard, Printed, Screen, attach};
pub use checkpoint::CheckpointRequest;
pub use client::{ExecStdio, Shim, ShimMount, TaskState};
pub use criu::Restore;
pub use error::Error;
pub use exit::{ExitRecord, read_exit_record};
pub use launch::{Backend, Launcher};
pub use probe::user_namespaces;
pub use program::Program;
