//! Ending a container.

use std::time::Duration;

use tokio::sync::watch;

use super::error::Error;
use super::snapshot::{ContainerSnapshot, ContainerState};
use crate::shim::Shim;

/// What SIGKILL needs at most, unless a process is stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(15);

/// How soon it is looked whether a process handles its stop signal by now; then after twice the time, up to the longest.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(1);

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
        let asking = async {
            ask(container, shim).await;
            std::future::pending::<()>().await;
        };
        let ended = async {
            tokio::select! {
                // An error means the sender is gone, and with it the container.
                _ = exited.wait_for(|exited| *exited) => {}
                () = asking => {}
            }
        };
        if tokio::time::timeout(grace, ended).await.is_ok() {
            return Ok(());
        }
    }
    kill(&container.id, shim, &container.state, exited).await
}

/// Sends the stop signal, so that it arrives: the kernel discards what the first process of a PID namespace has no handler of
/// (`pid_namespaces(7)`), and a process that was just started has none yet. It is sent again when there is one.
async fn ask(container: &ContainerSnapshot, shim: &Shim) {
    let signal = container.stop_signal;
    let pid = if let ContainerState::Running { pid, .. } = container.state { pid } else { 0 };
    let mut discarded = discards(pid, signal);
    let mut pause = LOOK;
    loop {
        match shim.kill("", signal, false).await {
            Err(error) if error.is_gone() => return,
            Err(error) => tracing::warn!(container = container.id, %error, "sending the stop signal"),
            Ok(()) => {}
        }
        if !discarded {
            return;
        }
        // Most programs that have no handler now will never have one.
        while discarded {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
            discarded = discards(pid, signal);
        }
    }
}

/// Whether the process is the first of its PID namespace, and neither handles nor blocks the signal.
fn discards(pid: u32, signal: i32) -> bool {
    // No process, no answer: it is asked once.
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| is_discarded(&status, signal))
}

/// The same from the text of `/proc/PID/status` (proc(5)): masks are hexadecimal, signal 1 is the lowest bit.
fn is_discarded(status: &str, signal: i32) -> bool {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bit = u32::try_from(signal - 1).ok().and_then(|place| 1_u64.checked_shl(place)).unwrap_or(0);
    let has = |name| {
        value(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_none_or(|mask| mask & bit != 0)
    };
    let numbers: Vec<&str> = value("NSpid:").unwrap_or_default().split_whitespace().collect();
    // One number is the host's own first process.
    numbers.len() > 1 && numbers.last() == Some(&"1") && !has("SigCgt:") && !has("SigBlk:")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pids: &str, blocked: &str, caught: &str) -> String {
        format!("Name:\tsh\nNSpid:\t{pids}\nSigBlk:\t{blocked}\nSigIgn:\t0\nSigCgt:\t{caught}\n")
    }

    #[test]
    fn only_a_first_process_without_a_handler_discards_a_signal() {
        const NONE: &str = "0000000000000000";
        const TERM: &str = "0000000000004000";
        let term = |pids, blocked, caught| is_discarded(&status(pids, blocked, caught), libc::SIGTERM);
        assert!(term("4711\t1", NONE, NONE));
        assert!(term("4711\t1", NONE, "0000000000008000"), "a handler of another signal");
        assert!(!term("4711\t1", NONE, TERM));
        assert!(!term("4711\t1", TERM, NONE), "it waits until it is unblocked");
        assert!(!term("4711\t17", NONE, NONE), "in a PID namespace that is shared");
        assert!(!term("1", NONE, NONE), "in the host's");
        assert!(!is_discarded("", libc::SIGTERM));
        let last = status("4711\t1", NONE, "8000000000000000");
        assert!(!is_discarded(&last, 64) && is_discarded(&last, 63));
    }
}
