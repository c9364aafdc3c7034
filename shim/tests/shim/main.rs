//! The shim against a real kernel: real namespaces, cgroups, overlayfs and busybox. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, unsafe_code)]

mod backends;
mod containerd;
mod execs;
mod figures;
mod foreign;
mod harness;
mod lifecycle;
mod loggers;
mod logs;
mod raw;
mod spec;
mod trouble;
