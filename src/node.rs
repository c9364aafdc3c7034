//! A node: Berth's files put on it, taken off it again, and looks at whether it can run pods.
//!
//! ```text
//!   Options ── plan ──> [Step] ── apply ──> the host's root, and a manifest of every path before it is written
//!                                  │ a step fails: all that this run did is undone
//!   manifest ── remove ──> the root as it was
//! ```
//!
//! A [`plan`] is a value: directories, files and links as they shall be, and what systemd is told in between. [`apply`]
//! holds each step against what is there and does what is missing, so that a second run changes nothing. The
//! [`manifest`] says of every path what was put there and what was there before; it is written before the step it
//! speaks of. [`root`] finds every path inside the host's root by the kernel (`RESOLVE_IN_ROOT`): a link on the host
//! can't lead out of it.

pub mod apply;
mod assess;
pub mod check;
mod containerd;
pub mod doctor;
mod error;
mod kubelet;
pub mod manifest;
mod places;
pub mod plan;
pub mod remove;
mod report;
pub mod root;
pub mod systemd;
pub mod verify;

pub use apply::install;
pub use error::Error;
pub use manifest::Manifest;
pub use plan::{Mode, Options};
pub use remove::uninstall;
pub use report::{Change, Report, What};
pub use root::{HostPath, HostRoot};
pub use verify::verify;

/// Where everything of ours lives on the host.
pub const HOME: &str = "/opt/berth";
/// The link to the version that is in use.
pub const CURRENT: &str = "/opt/berth/current";
/// The programs of the version in use.
pub const BIN: &str = "/opt/berth/current/bin";
/// One directory a version.
pub const VERSIONS: &str = "/opt/berth/versions";
/// The socket of the daemon that the kubelet is switched to.
pub const ENDPOINT: &str = "unix:///run/berth/berth.sock";
