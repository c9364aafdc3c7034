//! Cgroup v1: a directory in each controller's hierarchy. `memory.stat` has every value twice, of the cgroup alone and with
//! those below it (`total_…`): the second counts.

use std::path::{Path, PathBuf};

use super::{Buffer, Detail, File, HugePages, Memory, NO_LIMIT, Setting, Usage, parse, processes};

/// Nanoseconds of a tick, of which there are 100 a second on every architecture that we build for (`USER_HZ`).
const TICK: u64 = 10_000_000;

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    at: PathBuf,
    cpu_usage: File,
    memory_usage: File,
    memory_stat: File,
    tasks: File,
    pub(super) details: Option<Box<Details>>,
}

/// What only metrics ask for.
#[derive(Debug)]
pub(super) struct Details {
    cpuacct: PathBuf,
    /// User and system time in one file, though in ticks only: metrics are whole seconds.
    times: File,
    cpu_stat: File,
    memory_peak: File,
    limit_hits: File,
    kernel_memory: File,
    soft_limit: Setting,
    oom_control: File,
    tasks_limit: Setting,
    processes: File,
    /// Bytes, then operations.
    blkio: [File; 2],
    /// Size, usage, highest usage.
    huge_pages: Vec<(&'static str, File, File)>,
}

impl Details {
    fn new(root: &Path, at: &Path) -> Self {
        let directory = |controller: &str| root.join(controller).join(at);
        let (cpuacct, memory, pids) = (directory("cpuacct"), directory("memory"), directory("pids"));
        let (blkio, hugetlb) = (directory("blkio"), directory("hugetlb"));
        let sizes = super::v2::page_sizes().iter().map(|size| {
            let file = |what: &str| File::new(&hugetlb, &format!("hugetlb.{size}.{what}"));
            (size.as_str(), file("usage_in_bytes"), file("max_usage_in_bytes"))
        });
        Self {
            times: File::new(&cpuacct, "cpuacct.stat"),
            cpu_stat: File::new(&directory("cpu"), "cpu.stat"),
            memory_peak: File::new(&memory, "memory.max_usage_in_bytes"),
            limit_hits: File::new(&memory, "memory.failcnt"),
            kernel_memory: File::new(&memory, "memory.kmem.usage_in_bytes"),
            soft_limit: Setting::new(&memory, "memory.soft_limit_in_bytes"),
            oom_control: File::new(&memory, "memory.oom_control"),
            tasks_limit: Setting::new(&pids, "pids.max"),
            processes: File::new(&cpuacct, "cgroup.procs"),
            blkio: ["io_service_bytes", "io_serviced"]
                .map(|what| File::new(&blkio, &format!("blkio.throttle.{what}_recursive"))),
            huge_pages: sizes.collect(),
            cpuacct,
        }
    }
}

impl Files {
    pub(super) fn new(root: &Path, at: &Path) -> Self {
        let directory = |controller: &str| root.join(controller).join(at);
        let (cpuacct, memory, pids) = (directory("cpuacct"), directory("memory"), directory("pids"));
        Self {
            root: root.to_owned(),
            at: at.to_owned(),
            cpu_usage: File::new(&cpuacct, "cpuacct.usage"),
            memory_usage: File::new(&memory, "memory.usage_in_bytes"),
            memory_stat: File::new(&memory, "memory.stat"),
            tasks: File::new(&pids, "pids.current"),
            details: None,
        }
    }

    pub(super) fn cpu(&mut self, buffer: &mut Buffer) -> Option<u64> {
        self.cpu_usage.number(buffer)
    }

    pub(super) fn usage(&mut self, buffer: &mut Buffer) -> Usage {
        Usage {
            cpu_nanoseconds: self.cpu(buffer),
            memory: self.memory(buffer),
            tasks: self.tasks.number(buffer),
            ..Usage::default()
        }
    }

    fn memory(&mut self, buffer: &mut Buffer) -> Option<Memory> {
        let mut memory = Memory { usage: self.memory_usage.number(buffer)?, ..Memory::default() };
        let (mut limit, mut sum_limit) = (None, None);
        let limited = |value: u64| Some(value).filter(|value| *value < NO_LIMIT);
        // Half of the lines are of the cgroup alone.
        let counts = |key: &str| key.starts_with("total_") || key.starts_with("hierarchical_");
        parse::pairs_of(self.memory_stat.read(buffer)?, counts, |key, value| match key {
            "hierarchical_memory_limit" => limit = limited(value),
            "hierarchical_memsw_limit" => sum_limit = limited(value),
            "total_cache" => memory.cache = value,
            "total_rss" => memory.rss = value,
            "total_mapped_file" => memory.mapped_file = value,
            "total_swap" => memory.swap = Some(value),
            "total_pgfault" => memory.page_faults = value,
            "total_pgmajfault" => memory.major_page_faults = value,
            "total_inactive_file" => memory.inactive_file = value,
            "total_active_file" => memory.active_file = value,
            _ => {}
        });
        memory.limit = limit;
        // The kernel limits the sum; what is left for swap is the difference.
        memory.swap_limit = limit.zip(sum_limit).map(|(limit, sum)| sum.saturating_sub(limit));
        Some(memory)
    }

    /// `only` is the one process that there is, if that is known.
    pub(super) fn detail(&mut self, buffer: &mut Buffer, detail: &mut Detail, only: Option<u32>) {
        let Self { root, at, details, .. } = self;
        let files = &mut **details.get_or_insert_with(|| Box::new(Details::new(root, at)));
        if let Some(text) = files.times.read(buffer) {
            parse::pairs(text, |key, value| match key {
                "user" => detail.cpu_user_nanoseconds = value.saturating_mul(TICK),
                "system" => detail.cpu_system_nanoseconds = value.saturating_mul(TICK),
                _ => {}
            });
        }
        if let Some(text) = files.cpu_stat.read(buffer) {
            parse::pairs(text, |key, value| match key {
                "nr_periods" => detail.periods = value,
                "nr_throttled" => detail.throttled_periods = value,
                "throttled_time" => detail.throttled_nanoseconds = value,
                _ => {}
            });
        }
        detail.memory_peak = files.memory_peak.number(buffer).unwrap_or(0);
        detail.memory_limit_hits = files.limit_hits.number(buffer).unwrap_or(0);
        detail.kernel_memory = files.kernel_memory.number_if_any(buffer).unwrap_or(0);
        detail.memory_reservation = files.soft_limit.number(buffer).filter(|limit| *limit < NO_LIMIT);
        if let Some(text) = files.oom_control.read(buffer) {
            parse::pairs(text, |key, value| {
                if key == "oom_kill" {
                    detail.oom_kills = value;
                }
            });
        }
        detail.tasks_limit = files.tasks_limit.number(buffer);
        match only {
            Some(pid) => detail.processes.push(pid),
            None => processes(&files.cpuacct, &mut files.processes, buffer, &mut detail.processes),
        }
        for (file, bytes) in files.blkio.iter_mut().zip([true, false]) {
            if let Some(text) = file.read_if_any(buffer) {
                devices(text, bytes, detail);
            }
        }
        for (size, usage, peak) in &mut files.huge_pages {
            let Some(usage) = usage.number_if_any(buffer) else { continue };
            let peak = peak.number_if_any(buffer).unwrap_or(usage);
            detail.huge_pages.push(((*size).to_owned(), HugePages { usage, peak }));
        }
    }
}

/// Lines `8:0 Read 4096`, and at last a `Total`.
fn devices(text: &str, bytes: bool, detail: &mut Detail) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        let Some(device) = parse::device(&mut detail.devices, name) else { continue };
        match (operation, bytes) {
            ("Read", true) => device.read_bytes = value,
            ("Write", true) => device.write_bytes = value,
            ("Read", false) => device.reads = value,
            ("Write", false) => device.writes = value,
            _ => {}
        }
    }
}
