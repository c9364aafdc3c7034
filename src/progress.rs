//! What is under way: which operation is in which stage, on what object, since when.
//!
//! Whoever begins something that may take longer than it should puts it on the [`Board`] and holds what he gets until it is
//! over. The board is read by those who want to know why something does not go on: the watchdog, `/healthz`, a person. It holds
//! no more than calls are under way, which the load limit bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What may be expected of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It waits for others: the kernel, a shim, a registry. One that takes long concerns its own object and nobody else.
    Step,
    /// A record is written. When that takes long, no pod goes on.
    Write,
    /// A pod's task handles one request, or the end of one. It never waits.
    Turn,
}

impl Kind {
    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Write => "write",
            Self::Turn => "turn",
        }
    }
}

/// Something that is under way.
#[derive(Clone, Debug)]
pub struct Work {
    /// What may be expected of it.
    pub kind: Kind,
    /// What it is part of: `run_pod_sandbox`.
    pub operation: &'static str,
    /// Where it is: `sandbox_create_network`.
    pub stage: &'static str,
    /// On what: the id of a pod or container, a path.
    pub object: String,
    /// When it began.
    pub since: Instant,
}

impl Work {
    /// How long it has been under way.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }
}

/// All that is under way. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Works>>);

#[derive(Debug, Default)]
struct Works {
    next: u64,
    /// In the order in which they began.
    under_way: BTreeMap<u64, Work>,
}

impl Board {
    /// Something begins; it is over when what this returns is dropped.
    #[must_use]
    pub fn begin(
        &self,
        kind: Kind,
        operation: &'static str,
        stage: &'static str,
        object: impl Into<String>,
    ) -> UnderWay {
        let work = Work { kind, operation, stage, object: object.into(), since: Instant::now() };
        let mut works = self.0.lock();
        let number = works.next;
        works.next += 1;
        works.under_way.insert(number, work);
        UnderWay { board: self.clone(), number }
    }

    /// What is under way now, the oldest first.
    pub fn list(&self) -> Vec<Work> {
        self.0.lock().under_way.values().cloned().collect()
    }
}

/// A place on the board.
#[derive(Debug)]
pub struct UnderWay {
    board: Board,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.board.0.lock().under_way.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_shows_what_is_not_over() {
        let board = Board::default();
        let first = board.begin(Kind::Step, "run_pod_sandbox", "sandbox_create", "a");
        let second = board.begin(Kind::Write, "record", "write", "b");
        let objects = |board: &Board| board.list().into_iter().map(|work| work.object).collect::<Vec<_>>();
        assert_eq!(objects(&board), ["a", "b"]);
        drop(first);
        assert_eq!(objects(&board), ["b"]);
        drop(second);
        assert!(board.list().is_empty());
    }
}
