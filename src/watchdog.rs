//! Whether the daemon itself makes progress, and where it hangs when it does not.
//!
//! Four parts must always go on, whatever a single pod, registry or disk does:
//!
//! | part | it goes on when | what it hangs in |
//! | --- | --- | --- |
//! | `workers` | a task of the async runtime ran lately | the oldest work on the board |
//! | `blocking` | a thread of its pool for blocking work ran lately | the oldest work on the board |
//! | `store` | no record is being written for too long | that record |
//! | `pods` | no pod's task handles one request for too long | that request |
//!
//! A thread of its own looks, so that it can tell also when the runtime stands still. A step of one pod that takes long is no
//! hang: it is named in the log, and the daemon goes on for the others.

mod pulse;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::progress::{Board, Kind, Work};
use pulse::Pulse;

/// A part that stands still for so long hangs, where nobody says otherwise.
pub const LIMIT: Duration = Duration::from_secs(30);
/// A step of one pod that takes longer is named in the log.
const SLOW: Duration = Duration::from_secs(120);
/// Looks between two hangs' limits.
const LOOKS: u32 = 4;

/// A part of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The async runtime's threads.
    Workers,
    /// Its threads for what blocks.
    Blocking,
    /// The records.
    Store,
    /// The pods' tasks.
    Pods,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Workers, Self::Blocking, Self::Store, Self::Pods];

    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Blocking => "blocking",
            Self::Store => "store",
            Self::Pods => "pods",
        }
    }
}

/// A part that stands still.
#[derive(Clone, Debug)]
pub struct Hang {
    /// Which.
    pub part: Part,
    /// For how long.
    pub duration: Duration,
    /// What it hangs in, as far as that is known.
    pub work: Option<Work>,
}

impl fmt::Display for Hang {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: no progress for {} s", self.part.word(), self.duration.as_secs())?;
        match &self.work {
            Some(work) => write!(
                out,
                ", in {} at {} of {} for {} s",
                work.operation,
                work.stage,
                work.object,
                work.age().as_secs()
            ),
            None => Ok(()),
        }
    }
}

/// Looks whether the daemon makes progress. Clones are the same.
#[derive(Clone, Debug)]
pub struct Watchdog {
    board: Board,
    pulse: Arc<Pulse>,
    limit: Duration,
}

impl Watchdog {
    /// Begins to feel the pulse of the runtime that this is called in. What stands still longer than `limit` hangs.
    pub fn new(board: Board, limit: Duration) -> Self {
        Self { board, pulse: Pulse::start(limit / LOOKS), limit }
    }

    /// What is under way now, the oldest first.
    pub fn under_way(&self) -> Vec<Work> {
        self.board.list()
    }

    /// The parts that hang now; none when all is well.
    pub fn hangs(&self) -> Vec<Hang> {
        judge(self.pulse.ages(), &self.board.list(), self.limit)
    }

    /// Looks from a thread of its own until what this returns is dropped: calls `alive` while all parts make progress, and says
    /// in the log which does not.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn watch(&self, alive: impl Fn() + Send + 'static) -> io::Result<Watching> {
        let (watching, ended) = sync_channel(0);
        let watchdog = self.clone();
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watchdog.look(&ended, alive))
            .map(|_| Watching { _ends: watching })
    }

    fn look(&self, ended: &Receiver<()>, alive: impl Fn()) {
        let (mut told, mut slow) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let works = self.board.list();
            let hangs = judge(self.pulse.ages(), &works, self.limit);
            tell_hangs(&hangs, &mut told);
            tell_slow(&works, &mut slow);
            if hangs.is_empty() {
                alive();
            }
            match ended.recv_timeout(self.limit / LOOKS) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Ends the looks when it is dropped.
#[derive(Debug)]
pub struct Watching {
    _ends: SyncSender<()>,
}

/// Which parts hang: `pulse` says how long ago workers and blocking threads ran.
fn judge(pulse: (Duration, Duration), works: &[Work], limit: Duration) -> Vec<Hang> {
    let now = Instant::now();
    let age = |work: &Work| now.saturating_duration_since(work.since);
    let mut hangs = Vec::new();
    for (part, silent) in [(Part::Workers, pulse.0), (Part::Blocking, pulse.1)] {
        if silent > limit {
            // A turn holds a worker; else the oldest is the most likely.
            let suspect = works.iter().find(|work| work.kind == Kind::Turn && age(work) > limit);
            hangs.push(Hang { part, duration: silent, work: suspect.or(works.first()).cloned() });
        }
    }
    for (part, kind) in [(Part::Store, Kind::Write), (Part::Pods, Kind::Turn)] {
        let stuck = works.iter().find(|work| work.kind == kind && age(work) > limit);
        hangs.extend(stuck.map(|work| Hang { part, duration: age(work), work: Some(work.clone()) }));
    }
    hangs
}

/// Each hang once, and its end.
fn tell_hangs(hangs: &[Hang], told: &mut BTreeSet<Part>) {
    for hang in hangs {
        if told.insert(hang.part) {
            let work = hang.work.as_ref();
            tracing::error!(
                part = hang.part.word(),
                operation = work.map(|work| work.operation),
                stage = work.map(|work| work.stage),
                object = work.map(|work| work.object.as_str()),
                seconds = hang.duration.as_secs(),
                "no progress: the service manager is not told that the daemon is alive, and will restart it",
            );
        }
    }
    told.retain(|part| {
        let hangs_on = hangs.iter().any(|hang| hang.part == *part);
        if !hangs_on {
            tracing::warn!(part = part.word(), "it goes on");
        }
        hangs_on
    });
}

/// Each slow step once.
fn tell_slow(works: &[Work], told: &mut BTreeSet<(Instant, String)>) {
    let slow = || works.iter().filter(|work| work.kind == Kind::Step && work.age() > SLOW);
    for work in slow() {
        if told.insert((work.since, work.object.clone())) {
            tracing::warn!(
                operation = work.operation,
                stage = work.stage,
                object = work.object,
                seconds = work.age().as_secs(),
                "a step takes long; other pods are not held up by it",
            );
        }
    }
    told.retain(|(since, object)| slow().any(|work| work.since == *since && work.object == *object));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn work(kind: Kind, seconds: u64) -> Work {
        let since = Instant::now().checked_sub(SECOND * u32::try_from(seconds).unwrap_or(0));
        Work {
            kind,
            operation: "stop_pod_sandbox",
            stage: "write",
            object: format!("{seconds}"),
            since: since.unwrap_or_else(Instant::now),
        }
    }

    fn found(pulse: (u64, u64), works: &[Work]) -> Vec<(Part, Option<String>)> {
        let pulse = (Duration::from_secs(pulse.0), Duration::from_secs(pulse.1));
        let hangs = judge(pulse, works, LIMIT);
        hangs.into_iter().map(|hang| (hang.part, hang.work.map(|work| work.object))).collect()
    }

    #[test]
    fn what_stands_still_is_named_with_what_it_hangs_in() {
        assert_eq!(found((1, 1), &[work(Kind::Write, 10), work(Kind::Turn, 5)]), []);
        assert_eq!(found((1, 1), &[work(Kind::Write, 31)]), [(Part::Store, Some("31".to_owned()))]);
        assert_eq!(found((1, 1), &[work(Kind::Turn, 40)]), [(Part::Pods, Some("40".to_owned()))]);
        // The turn that holds the worker is named, not an older step beside it.
        let works = [work(Kind::Step, 90), work(Kind::Turn, 40)];
        let hang = Some("40".to_owned());
        assert_eq!(found((35, 1), &works), [(Part::Workers, hang.clone()), (Part::Pods, hang)]);
        assert_eq!(found((1, 35), &[]), [(Part::Blocking, None)]);
    }

    #[test]
    fn a_pod_that_is_stuck_is_no_hang_of_the_daemon() {
        assert_eq!(found((0, 0), &[work(Kind::Step, 900)]), []);
    }

    #[test]
    fn a_hang_reads_as_a_sentence() {
        let hang = Hang { part: Part::Store, duration: SECOND * 31, work: Some(work(Kind::Write, 31)) };
        let said = hang.to_string();
        assert!(
            said.starts_with("store: no progress for 31 s, in stop_pod_sandbox at write of 31 for "),
            "{said}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_worker_that_blocks_is_noticed_from_outside() {
        let board = Board::default();
        let watchdog = Watchdog::new(board.clone(), Duration::from_millis(40));
        let (alive, pings) = std::sync::mpsc::channel();
        let watching = watchdog
            .watch(move || {
                let _ = alive.send(());
            })
            .ok();
        let pinged = tokio::task::spawn_blocking(move || pings.recv().map(|()| pings)).await;
        let Ok(Ok(pings)) = pinged else { unreachable!("a ping comes while all is well") };
        let under_way = board.begin(Kind::Turn, "stop_pod_sandbox", "pod_task", "p1");
        // The only worker is held: what looks is beside it.
        let looking = watchdog.clone();
        let hold = tokio::spawn(async move {
            while !looking.hangs().iter().any(|hang| hang.part == Part::Workers) {
                std::thread::sleep(Duration::from_millis(5));
            }
            looking.hangs()
        });
        let hangs = hold.await.unwrap_or_default();
        assert!(
            hangs.iter().any(|hang| hang.work.as_ref().is_some_and(|work| work.object == "p1")),
            "{hangs:?}"
        );
        drop(under_way);
        // It goes on, and so do the pings.
        while pings.try_recv().is_ok() {}
        let again = tokio::task::spawn_blocking(move || pings.recv()).await;
        assert!(matches!(again, Ok(Ok(()))));
        drop(watching);
    }
}
