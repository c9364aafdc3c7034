//! From processor time to cores in use: the difference between two samples over the time between them.

/// A first sample says something by itself when the cgroup is no older than this, in nanoseconds: it began at nothing.
const YOUNG: i64 = 60 * 1_000_000_000;
/// Samples closer together than this, in nanoseconds, say little: the kernel charges time in ticks.
const CLOSE: i64 = 500_000_000;

/// The rate of one cgroup.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    last: Option<(i64, u64)>,
    nano_cores: Option<u64>,
}

impl Rate {
    /// Takes in that `usage` nanoseconds were used at a time, by a cgroup that is there since another. Times are nanoseconds
    /// since the Unix epoch. Returns the rate: billionths of a core.
    pub(super) fn update(&mut self, at: i64, usage: u64, since: i64) -> Option<u64> {
        let (from, used) = match self.last {
            Some((last, _)) if at >= last && at - last < CLOSE => return self.nano_cores,
            Some((last, before)) if at > last && usage >= before => (last, usage - before),
            // A clock that was set back, or a cgroup made anew.
            Some(_) => {
                *self = Self { last: Some((at, usage)), nano_cores: None };
                return None;
            }
            None if at > since && at - since < YOUNG => (since, usage),
            None => {
                self.last = Some((at, usage));
                return None;
            }
        };
        self.last = Some((at, usage));
        let elapsed = u128::try_from(at - from).unwrap_or(1).max(1);
        self.nano_cores = u64::try_from(u128::from(used) * 1_000_000_000 / elapsed).ok();
        self.nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn two_samples_make_a_rate() {
        let mut rate = Rate::default();
        let start = 1_000 * SECOND;
        assert_eq!(rate.update(start, 500, 0), None, "old, and seen for the first time");
        assert_eq!(rate.update(start + 10 * SECOND, 500 + 5_000_000_000, 0), Some(500_000_000));
        assert_eq!(rate.update(start + 10 * SECOND + 1, u64::MAX, 0), Some(500_000_000), "too close");
        assert_eq!(rate.update(start + 12 * SECOND, 500 + 9_000_000_000, 0), Some(2_000_000_000));
        assert_eq!(rate.update(start + 22 * SECOND, 7, 0), None, "made anew");
        assert_eq!(rate.update(start + 23 * SECOND, 7, 0), Some(0));
        assert_eq!(rate.update(start, 9, 0), None, "the clock was set back");
    }

    #[test]
    fn a_young_cgroup_has_one_at_once() {
        let mut rate = Rate::default();
        assert_eq!(rate.update(104 * SECOND, 1_000_000_000, 100 * SECOND), Some(250_000_000));
        assert_eq!(rate.update(106 * SECOND, 1_000_000_000, 100 * SECOND), Some(0));
    }
}
