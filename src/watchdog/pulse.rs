//! The pulse of the async runtime: when its threads last ran something.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// When each kind of thread last ran, in milliseconds since the beginning.
#[derive(Debug)]
pub(super) struct Pulse {
    begin: Instant,
    workers: AtomicU64,
    blocking: AtomicU64,
}

impl Pulse {
    /// Beats for as long as somebody holds it.
    pub(super) fn start(period: Duration) -> Arc<Self> {
        let pulse =
            Arc::new(Self { begin: Instant::now(), workers: AtomicU64::new(0), blocking: AtomicU64::new(0) });
        tokio::spawn(workers(Arc::downgrade(&pulse), period));
        tokio::spawn(blocking(Arc::downgrade(&pulse), period));
        pulse
    }

    /// How long ago workers and blocking threads ran.
    pub(super) fn ages(&self) -> (Duration, Duration) {
        let now = self.begin.elapsed();
        let age = |beat: &AtomicU64| now.saturating_sub(Duration::from_millis(beat.load(Ordering::Relaxed)));
        (age(&self.workers), age(&self.blocking))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn workers(pulse: Weak<Pulse>, period: Duration) {
    while let Some(pulse) = pulse.upgrade() {
        pulse.workers.store(pulse.now(), Ordering::Relaxed);
        drop(pulse);
        tokio::time::sleep(period).await;
    }
}

async fn blocking(pulse: Weak<Pulse>, period: Duration) {
    while let Some(pulse) = pulse.upgrade() {
        let ran = tokio::task::spawn_blocking(move || pulse.blocking.store(pulse.now(), Ordering::Relaxed));
        if ran.await.is_err() {
            return;
        }
        tokio::time::sleep(period).await;
    }
}
