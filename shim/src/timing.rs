//! How long the parts of a creation and of a start took, for those who trace them.
//!
//! The shim sends no spans, so that it stays small: who calls it within a trace asks for these figures afterwards
//! (`berth.shim.v1.Shim/Timings`). They are taken only for calls that say they are part of a trace which is recorded, and are forgotten
//! when they were asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::ttrpc::proto::KeyValue;

use crate::job::Reporter;

/// Parts of one call that are kept.
pub(crate) const PARTS_MAX: usize = 16;

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether a call's metadata say that it is part of a trace that is recorded (W3C Trace Context, section 3.2.2.5: the last of
/// the flags' bits).
pub(crate) fn is_recorded(metadata: &[KeyValue]) -> bool {
    let place = metadata.iter().find(|pair| pair.key == "traceparent");
    let flags = place.and_then(|pair| pair.value.rsplit('-').next());
    flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
}

/// Reports one part after the other, if anybody wants to know.
#[derive(Debug)]
pub(crate) struct Laps<'a> {
    reporter: &'a Reporter,
    last: Option<u64>,
}

impl<'a> Laps<'a> {
    /// The first part began at `since`; `None` where nobody traces it.
    pub(crate) fn new(reporter: &'a Reporter, since: Option<u64>) -> Self {
        Self { reporter, last: since }
    }

    /// A part is over, the next one begins.
    pub(crate) fn lap(&mut self, name: &str) {
        if let Some(start) = &mut self.last {
            let end = now();
            self.reporter.took(name, *start, end);
            *start = end;
        }
    }

    /// A part is over that others have reported.
    pub(crate) fn skip(&mut self) {
        self.last = self.last.map(|_| now());
    }

    /// When the part under way began.
    pub(crate) fn since(&self) -> Option<u64> {
        self.last
    }
}

/// When the container's first process had its namespaces and began to mount: 0 where nobody wants to know, or not yet.
static MOUNTS_SINCE: AtomicU64 = AtomicU64::new(0);

/// The process that calls this begins to mount.
pub(crate) fn mounts_begin() {
    MOUNTS_SINCE.store(now(), Ordering::Relaxed);
}

/// Reports, in the container's first process, what libcontainer did from `since` on until now.
pub(crate) fn first_process(reporter: &Reporter, since: Option<u64>) {
    let Some(since) = since else { return };
    let mut laps = Laps::new(reporter, Some(since));
    match MOUNTS_SINCE.load(Ordering::Relaxed) {
        0 => laps.lap("shim_namespaces"),
        mounts => {
            reporter.took("shim_namespaces", since, mounts);
            laps.last = Some(mounts);
            laps.lap("shim_mounts");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_in_a_recorded_trace_are_timed() {
        let metadata = |value: &str| {
            vec![KeyValue { key: "traceparent".to_owned(), value: value.to_owned(), ..Default::default() }]
        };
        assert!(is_recorded(&metadata("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")));
        assert!(!is_recorded(&metadata("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")));
        assert!(!is_recorded(&metadata("")));
        assert!(!is_recorded(&[]));
    }
}
