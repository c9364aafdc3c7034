//! Tells systemd how we are: ready, stopping, alive. Without systemd all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Ready to answer.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// About to end.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Alive: all parts make progress.
pub(crate) fn alive() {
    if watchdog().is_some() {
        notify(&[NotifyState::Watchdog]);
    }
}

/// How long systemd waits for a sign of life before it restarts the daemon (`WatchdogSec`); `None` when it does not.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "telling systemd");
    }
}
