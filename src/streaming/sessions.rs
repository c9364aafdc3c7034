//! How many sessions there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Call;

/// Counts sessions by what they are for. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions(Arc<[AtomicI64; 3]>);

impl Sessions {
    /// One begins; it ends with what this returns.
    pub(super) fn begin(&self, call: &Call) -> Session {
        let index = match call {
            Call::Exec(_) => 0,
            Call::Attach(_) => 1,
            Call::PortForward(_) => 2,
        };
        if let Some(counter) = self.0.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Session { sessions: self.clone(), index }
    }

    /// Now, by kind.
    pub(super) fn now(&self) -> [(&'static str, i64); 3] {
        let [exec, attach, forward] = &*self.0;
        [("exec", exec), ("attach", attach), ("portforward", forward)]
            .map(|(kind, counter)| (kind, counter.load(Ordering::Relaxed)))
    }
}

/// A session under way.
#[derive(Debug)]
pub(super) struct Session {
    sessions: Sessions,
    index: usize,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(counter) = self.sessions.0.get(self.index) {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
