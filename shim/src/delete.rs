//! Removes what a container leaves: processes, cgroup, the runtime's state. In a forked child, because it may have to wait.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::container::Container;

use crate::bundle::state_root;
use crate::cgroup;
use crate::job::Reporter;
use crate::logger;
use crate::oci::Binary;
use crate::status::Failure;

const WAIT_MAX: Duration = Duration::from_secs(2);

/// Does all it can and reports everything that failed together.
pub(crate) fn run(
    id: &str,
    bundle: &Path,
    cgroups: &[PathBuf],
    binary: Option<&Binary>,
    loggers: &[OwnedFd],
    reporter: &Reporter,
) {
    let mut errors = Vec::new();
    if let Some(binary) = binary
        && let Err(failure) = binary.delete(id)
    {
        errors.push(failure.message);
    }
    cgroup::kill_all(cgroups, WAIT_MAX);
    let deadline = Instant::now() + WAIT_MAX;
    for directory in cgroups {
        if let Err(error) = cgroup::remove(directory, deadline) {
            errors.push(format!("removing {}: {error}", directory.display()));
        }
    }
    // Nobody writes to them any more.
    logger::leave(loggers);
    let state = state_root(bundle).join(id);
    if binary.is_none() {
        run_hooks(&state, &mut errors);
    }
    if let Err(error) = fs::remove_dir_all(state_root(bundle))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        errors.push(format!("removing {}: {error}", state.display()));
    }
    if errors.is_empty() {
        reporter.done();
    } else {
        reporter.failed(&Failure::internal(errors.join("; ")));
    }
}

fn run_hooks(state: &Path, errors: &mut Vec<String>) {
    let Ok(container) = Container::load(state.to_owned()) else { return };
    let Ok(config) = container.spec() else { return };
    if let Some(hooks) = &config.hooks
        && let Err(error) = libcontainer::hooks::run_hooks(
            hooks.poststop().as_ref(),
            Some(&container.state),
            Some(state),
            None,
            None,
        )
    {
        errors.push(format!("running poststop hooks: {error}"));
    }
}
