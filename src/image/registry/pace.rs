//! Whether what comes comes fast enough.

use std::time::Duration;

/// A transfer that moves less than this in each second of a whole progress timeout counts as stalled.
const TRICKLE: u64 = 1024;

/// Notices a transfer that never stops but hardly moves. Only time spent waiting for the network counts: a slow disk is
/// not the registry's fault.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, bytes: 0 }
    }

    pub(super) fn is_too_slow(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return false;
        }
        let slow = self.bytes < TRICKLE.saturating_mul(self.window.as_secs());
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_a_stall() {
        let mut pace = Pace::new(Duration::from_secs(10));
        assert!(!pace.is_too_slow(100, Duration::from_secs(9)));
        assert!(pace.is_too_slow(100, Duration::from_secs(1)));
        assert!(!pace.is_too_slow(10 * TRICKLE, Duration::from_secs(10)));
    }
}
