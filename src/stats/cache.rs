//! Readings of cgroups, kept for a second.
//!
//! One lock is held for the whole of a scrape, on threads that may block: who comes meanwhile finds everything fresh.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::FRESH;
use super::processes::{self, Processes};
use super::rate::Rate;
use crate::cgroup::Mode;
use crate::cgroup::usage::{Buffer, Detail, Meter, Usage};

/// How long files are kept open that only metrics need: Prometheus asks every minute at the latest, as a rule.
const IDLE: Duration = Duration::from_secs(150);

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What statistics show.
    Usage,
    /// What metrics show, too.
    Detail,
}

/// One reading of a cgroup.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// What it uses.
    pub usage: Usage,
    /// Billionths of a core it uses now; `None` until there are two samples.
    pub nano_cores: Option<u64>,
    /// The rest, if it was asked for.
    pub detail: Option<(Detail, Processes)>,
}

/// A cgroup to read.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The container or the pod.
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub(super) since: i64,
    /// Its first process; 0 for a pod's.
    pub(super) pid: u32,
}

#[derive(Debug)]
pub(super) struct Cache {
    mode: Mode,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    buffer: Buffer,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    meter: Meter,
    rate: Rate,
    sample: Option<(Instant, Arc<Sample>)>,
    processes: processes::Kept,
    /// When somebody last asked for all; the files for it are open since.
    detailed: Option<Instant>,
}

impl Cache {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, kept: Mutex::default() }
    }

    /// Takes a sample of each, for the rates.
    pub(super) fn sample(&self, targets: &[Target]) {
        let mut kept = self.kept.lock();
        let Kept { buffer, entries } = &mut *kept;
        for target in targets {
            let entry = self.entry(entries, target);
            if let Some(usage) = entry.meter.cpu_nanoseconds(buffer) {
                entry.rate.update(crate::container::now(), usage, target.since);
            }
        }
    }

    /// Reads each that is not fresh. `None` stays `None`, and so does what has no cgroup.
    pub(super) fn read(&self, targets: Vec<Option<Target>>, depth: Depth) -> Vec<Option<Arc<Sample>>> {
        let mut kept = self.kept.lock();
        let Kept { buffer, entries } = &mut *kept;
        let read = |target: Option<Target>| {
            let target = target?;
            self.entry(entries, &target).read(&target, depth, buffer)
        };
        targets.into_iter().map(read).collect()
    }

    /// Forgets all others, and closes files that nobody asked for lately.
    pub(super) fn keep(&self, known: &HashSet<String>) {
        let mut kept = self.kept.lock();
        kept.entries.retain(|id, _| known.contains(id));
        for entry in kept.entries.values_mut() {
            if entry.detailed.is_some_and(|at| at.elapsed() >= IDLE) {
                entry.detailed = None;
                entry.meter.close_details();
            }
        }
    }

    fn entry<'a>(&self, entries: &'a mut HashMap<String, Entry>, target: &Target) -> &'a mut Entry {
        entries.entry(target.id.clone()).or_insert_with(|| Entry {
            meter: Meter::new(self.mode, &target.path),
            rate: Rate::default(),
            sample: None,
            processes: processes::Kept::default(),
            detailed: None,
        })
    }
}

impl Entry {
    fn read(&mut self, target: &Target, depth: Depth, buffer: &mut Buffer) -> Option<Arc<Sample>> {
        if let Some((read, sample)) = &self.sample
            && read.elapsed() < FRESH
            && (depth == Depth::Usage || sample.detail.is_some())
        {
            return Some(Arc::clone(sample));
        }
        let (usage, detail) = if depth == Depth::Detail && target.pid != 0 {
            self.detailed = Some(Instant::now());
            let (usage, detail) = self.meter.all(buffer, Some(target.pid))?;
            let processes = self.processes.read(target.pid, &detail.processes);
            (usage, Some((detail, processes)))
        } else {
            (self.meter.usage(buffer)?, None)
        };
        let at = crate::container::now();
        let nano_cores = usage.cpu_nanoseconds.and_then(|cpu| self.rate.update(at, cpu, target.since));
        let sample = Arc::new(Sample { at, usage, nano_cores, detail });
        self.sample = Some((Instant::now(), Arc::clone(&sample)));
        Some(sample)
    }
}
