//! Ending a container.

use std::time::Duration;

use tokio::sync::watch;

use super::error::Error;
use super::snapshot::{ContainerSnapshot, ContainerState};
use crate::shim::Shim;

/// What SIGKILL needs at most, unless a process is stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(15);

/// Asks the running container to end with its stop signal; kills all of it when `grace` is over. Returns when it has
/// ended, which `exited` tells.
///
/// # Errors
/// [`Error::StillRuns`] when it outlives SIGKILL.
pub(crate) async fn stop(
    container: &ContainerSnapshot,
    grace: Duration,
    mut exited: watch::Receiver<bool>,
) -> Result<(), Error> {
    let Some(shim) = &container.shim else { return Ok(()) };
    if !grace.is_zero() {
        match shim.kill("", container.stop_signal, false).await {
            Err(error) if !error.is_gone() => {
                tracing::warn!(container = container.id, error = %error, "sending the stop signal");
            }
            _ => {}
        }
        // An error means the sender is gone, and with it the container.
        if tokio::time::timeout(grace, exited.wait_for(|exited| *exited)).await.is_ok() {
            return Ok(());
        }
    }
    kill(&container.id, shim, &container.state, exited).await
}

/// Kills every process of the container and waits until it has ended.
///
/// # Errors
/// [`Error::StillRuns`] when it outlives SIGKILL.
pub(crate) async fn kill(
    id: &str,
    shim: &Shim,
    state: &ContainerState,
    mut exited: watch::Receiver<bool>,
) -> Result<(), Error> {
    if let Err(error) = shim.kill("", libc::SIGKILL, true).await
        && !error.is_gone()
    {
        tracing::warn!(container = id, error = %error, "killing the container");
    }
    match tokio::time::timeout(KILL_LIMIT, exited.wait_for(|exited| *exited)).await {
        Ok(_) => Ok(()),
        Err(_) => {
            let pid = if let ContainerState::Running { pid, .. } = state { *pid } else { 0 };
            Err(Error::StillRuns { id: id.to_owned(), pid, limit: KILL_LIMIT })
        }
    }
}
