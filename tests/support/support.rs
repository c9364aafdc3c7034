//! What the integration tests and the benchmark share: a machine in small for each test.
//!
//! The test program enters a mount, PID and network namespace of its own before it starts a thread
//! ([`sandbox`]); when it ends, however it ends, the kernel ends everything that it started. Inside, every
//! test gets a [`world::World`]: a network namespace, a real registry, a real daemon with directories, socket
//! and cgroup of its own, a CRI client made by others (`k8s-cri`), and a check that nothing was left behind.
//!
//! `BERTH_TEST_RUNTIME=containerd` puts Debian's containerd in the daemon's place: the harness and the tests
//! can so be held against another implementation of the same interface.

pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod leaks;
pub(crate) mod measure;
pub(crate) mod netns;
pub(crate) mod pages;
pub(crate) mod plugin;
pub(crate) mod proxy;
pub(crate) mod registry;
pub(crate) mod runtime;
pub(crate) mod sandbox;
pub(crate) mod spec;
pub(crate) mod streaming;
pub(crate) mod sys;
pub(crate) mod world;

pub(crate) use spec::container;
pub(crate) use world::World;

use std::time::{Duration, Instant};

/// How long to wait for what takes `seconds` at most on a real machine: `BERTH_TEST_PATIENCE` times that, for machines that
/// are emulated. It is for waits that end as soon as they can, not for times that the daemon is held to.
pub(crate) fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("BERTH_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Duration::from_secs(seconds) * factor
}

/// The moment when [`patience`] ends.
pub(crate) fn within(seconds: u64) -> Instant {
    Instant::now() + patience(seconds)
}
