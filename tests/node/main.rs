//! Installing on a node: into roots made for it, by the real program and the library, as root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod chart;
mod doctor;
mod failure;
mod host;
mod hostile;
mod install;
mod package;
mod services;
mod shell;
mod watch;
