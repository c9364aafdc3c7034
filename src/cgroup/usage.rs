//! What a cgroup uses, read from its files by ourselves.
//!
//! A scrape reads some files of every container on the node, so reading is spare: a file stays open ([`Meter`]) and is read once,
//! one buffer serves all, and numbers are picked out of the bytes as they are. Statistics need a part of the files, metrics
//! all of them: those are opened when they are first asked for. A file that is not there leaves its field empty: the
//! controller is missing, or the cgroup is gone.

mod file;
mod parse;
mod v1;
mod v2;

use std::path::Path;

use super::Mode;

pub use file::Buffer;
use file::{File, Setting};

/// Above this a v1 limit is none: the largest number of whole pages, whatever the page size.
const NO_LIMIT: u64 = 1 << 62;
/// More processes than this in one container are not looked at one by one.
const MAX_PROCESSES: usize = 4096;

/// What statistics are made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time since the cgroup was made.
    pub cpu_nanoseconds: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Time lost waiting for the processor (v2).
    pub cpu_pressure: Option<Pressure>,
    /// Time lost waiting for memory (v2).
    pub memory_pressure: Option<Pressure>,
    /// Time lost waiting for input and output (v2).
    pub io_pressure: Option<Pressure>,
}

/// Memory in bytes, with everything below the cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged.
    pub usage: u64,
    /// The limit in force, its parents' considered on v1.
    pub limit: Option<u64>,
    /// File pages that could go at once.
    pub inactive_file: u64,
    /// File pages in use.
    pub active_file: u64,
    /// Anonymous pages.
    pub rss: u64,
    /// File pages.
    pub cache: u64,
    /// File pages that are mapped.
    pub mapped_file: u64,
    /// What the kernel itself holds for it (v2; see [`Detail::kernel_memory`]).
    pub kernel: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read.
    pub major_page_faults: u64,
    /// Swapped out; `None` when swap is not accounted.
    pub swap: Option<u64>,
    /// Limit of swap alone.
    pub swap_limit: Option<u64>,
}

impl Memory {
    /// What can't be had back at once, as the kubelet and cAdvisor count it.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Microseconds in all.
    pub total_microseconds: u64,
    /// Percent of the last 10 seconds.
    pub average_10: f64,
    /// Percent of the last minute.
    pub average_60: f64,
    /// Percent of the last 5 minutes.
    pub average_300: f64,
}

/// What only metrics ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Processor time in user mode.
    pub cpu_user_nanoseconds: u64,
    /// Processor time in kernel mode.
    pub cpu_system_nanoseconds: u64,
    /// Enforcement periods of the quota.
    pub periods: u64,
    /// Periods in which it was throttled.
    pub throttled_periods: u64,
    /// Time it was throttled.
    pub throttled_nanoseconds: u64,
    /// Highest memory usage seen.
    pub memory_peak: u64,
    /// Times the memory limit was hit.
    pub memory_limit_hits: u64,
    /// What the kernel holds for it.
    pub kernel_memory: u64,
    /// Soft limit (v1) or protection (v2) of memory.
    pub memory_reservation: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Limit of tasks.
    pub tasks_limit: Option<u64>,
    /// Its processes, those of cgroups below it too.
    pub processes: Vec<u32>,
    /// Block devices.
    pub devices: Vec<DeviceUsage>,
    /// Huge pages, by size as the kernel writes it (`2MB`).
    pub huge_pages: Vec<(String, HugePages)>,
}

/// What was read from and written to a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Now.
    pub usage: u64,
    /// At most, where the kernel keeps it (v1).
    pub peak: u64,
}

/// Reads one cgroup.
#[derive(Debug)]
pub struct Meter {
    files: Files,
}

#[derive(Debug)]
enum Files {
    V1(Box<v1::Files>),
    V2(Box<v2::Files>),
}

impl Meter {
    /// A meter of the cgroup at a path relative to the mount points.
    pub fn new(mode: Mode, path: &Path) -> Self {
        Self::below(Path::new(super::ROOT), mode, path)
    }

    /// The same for hierarchies that are mounted below `root`.
    pub fn below(root: &Path, mode: Mode, path: &Path) -> Self {
        let path: std::path::PathBuf =
            path.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
        let files = match mode {
            Mode::Unified => Files::V2(Box::new(v2::Files::new(&root.join(path)))),
            Mode::Legacy | Mode::Hybrid => Files::V1(Box::new(v1::Files::new(root, &path))),
        };
        Self { files }
    }

    /// Processor time alone, in nanoseconds: what rates are made of.
    pub fn cpu_nanoseconds(&mut self, buffer: &mut Buffer) -> Option<u64> {
        match &mut self.files {
            Files::V1(files) => files.cpu(buffer),
            Files::V2(files) => files.cpu(buffer),
        }
    }

    /// What statistics need. `None` when there is no such cgroup.
    pub fn usage(&mut self, buffer: &mut Buffer) -> Option<Usage> {
        let usage = match &mut self.files {
            Files::V1(files) => files.usage(buffer),
            Files::V2(files) => files.usage(buffer, None),
        };
        (usage != Usage::default()).then_some(usage)
    }

    /// That, and what metrics need. `first` is the process that was there first: when there is one task alone, it is that
    /// process.
    pub fn all(&mut self, buffer: &mut Buffer, first: Option<u32>) -> Option<(Usage, Detail)> {
        let mut detail = Detail::default();
        let usage = match &mut self.files {
            Files::V1(files) => files.usage(buffer),
            // Some files have to do with both.
            Files::V2(files) => files.usage(buffer, Some(&mut detail)),
        };
        if usage == Usage::default() {
            return None;
        }
        // A task is a thread of a process; those below are counted with it.
        let only = first.filter(|_| usage.tasks == Some(1));
        match &mut self.files {
            Files::V1(files) => files.detail(buffer, &mut detail, only),
            Files::V2(files) => files.detail(buffer, &mut detail, only),
        }
        Some((usage, detail))
    }

    /// Closes the files that only metrics need.
    pub fn close_details(&mut self) {
        match &mut self.files {
            Files::V1(files) => files.details = None,
            Files::V2(files) => files.details = None,
        }
    }
}

/// The processes in a cgroup directory and below it. A directory's link count tells whether there is anything below.
fn processes(directory: &Path, own: &mut File, buffer: &mut Buffer, found: &mut Vec<u32>) {
    if let Some(text) = own.read(buffer) {
        let room = MAX_PROCESSES.saturating_sub(found.len());
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).take(room));
    }
    let links = rustix::fs::stat(directory).map_or(0, |stat| stat.st_nlink);
    if links <= 2 {
        return;
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let below = entry.path();
            processes(&below, &mut File::new(&below, "cgroup.procs"), buffer, found);
        }
    }
}

#[cfg(test)]
mod tests;
