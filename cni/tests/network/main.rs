//! The real thing: controllers on the real kernel, each in a network namespace of its own that stands for the host.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod drivers;
mod host;
mod lease;
mod lifecycle;
mod limits;
mod names;
mod recovery;
mod settings;
mod subnets;
mod traffic;
