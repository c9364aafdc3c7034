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

/// Pings the watchdog, twice as often as it wants, from a task: a runtime whose workers are all stuck does not ping.
pub(crate) async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled().filter(|period| !period.is_zero()) else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval((period / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "telling systemd");
    }
}
