//! Cgroup v1: a directory in each controller's hierarchy. `memory.stat` has every value twice, of the cgroup alone and with
//! those below it (`total_…`): the second counts.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use super::{Buffer, Detail, HugePages, Memory, NO_LIMIT, Usage, parse, path, processes};

#[derive(Debug)]
pub(super) struct Files {
    cpu_usage: CString,
    memory_usage: CString,
    memory_stat: CString,
    tasks: CString,
    cpuacct: PathBuf,
    cpu: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    blkio: PathBuf,
    hugetlb: PathBuf,
}

impl Files {
    pub(super) fn new(root: &Path, at: &Path) -> Self {
        let directory = |controller: &str| root.join(controller).join(at);
        let (cpuacct, memory, pids) = (directory("cpuacct"), directory("memory"), directory("pids"));
        Self {
            cpu_usage: path(&cpuacct, "cpuacct.usage"),
            memory_usage: path(&memory, "memory.usage_in_bytes"),
            memory_stat: path(&memory, "memory.stat"),
            tasks: path(&pids, "pids.current"),
            cpuacct,
            cpu: directory("cpu"),
            memory,
            pids,
            blkio: directory("blkio"),
            hugetlb: directory("hugetlb"),
        }
    }

    pub(super) fn cpu(&self, buffer: &mut Buffer) -> Option<u64> {
        buffer.number(&self.cpu_usage)
    }

    pub(super) fn usage(&self, buffer: &mut Buffer) -> Usage {
        Usage {
            cpu_nanoseconds: self.cpu(buffer),
            memory: self.memory(buffer),
            tasks: buffer.number(&self.tasks),
            ..Usage::default()
        }
    }

    fn memory(&self, buffer: &mut Buffer) -> Option<Memory> {
        let mut memory = Memory { usage: buffer.number(&self.memory_usage)?, ..Memory::default() };
        let (mut limit, mut sum_limit) = (None, None);
        let limited = |value: u64| Some(value).filter(|value| *value < NO_LIMIT);
        parse::pairs(buffer.read(&self.memory_stat)?, |key, value| match key {
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

    pub(super) fn detail(&self, buffer: &mut Buffer) -> Detail {
        let mut detail = Detail::default();
        let number =
            |buffer: &mut Buffer, directory: &Path, file: &str| buffer.number(&path(directory, file));
        detail.cpu_user_nanoseconds = number(buffer, &self.cpuacct, "cpuacct.usage_user").unwrap_or(0);
        detail.cpu_system_nanoseconds = number(buffer, &self.cpuacct, "cpuacct.usage_sys").unwrap_or(0);
        if let Some(text) = buffer.read(&path(&self.cpu, "cpu.stat")) {
            parse::pairs(text, |key, value| match key {
                "nr_periods" => detail.periods = value,
                "nr_throttled" => detail.throttled_periods = value,
                "throttled_time" => detail.throttled_nanoseconds = value,
                _ => {}
            });
        }
        let memory = &self.memory;
        detail.memory_peak = number(buffer, memory, "memory.max_usage_in_bytes").unwrap_or(0);
        detail.memory_limit_hits = number(buffer, memory, "memory.failcnt").unwrap_or(0);
        detail.kernel_memory = number(buffer, memory, "memory.kmem.usage_in_bytes").unwrap_or(0);
        detail.memory_reservation =
            number(buffer, memory, "memory.soft_limit_in_bytes").filter(|limit| *limit < NO_LIMIT);
        if let Some(text) = buffer.read(&path(memory, "memory.oom_control")) {
            parse::pairs(text, |key, value| {
                if key == "oom_kill" {
                    detail.oom_kills = value;
                }
            });
        }
        detail.tasks_limit = number(buffer, &self.pids, "pids.max");
        processes(&self.cpuacct, buffer, &mut detail.processes);
        self.devices(buffer, &mut detail);
        self.huge_pages(buffer, &mut detail);
        detail
    }

    /// Lines `8:0 Read 4096`, and at last a `Total`.
    fn devices(&self, buffer: &mut Buffer, detail: &mut Detail) {
        let files = [
            ("blkio.throttle.io_service_bytes_recursive", true),
            ("blkio.throttle.io_serviced_recursive", false),
        ];
        for (file, bytes) in files {
            let Some(text) = buffer.read(&path(&self.blkio, file)) else { continue };
            for line in text.lines() {
                let mut words = line.split(' ');
                let (Some(name), Some(operation), Some(value)) = (words.next(), words.next(), words.next())
                else {
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
    }

    fn huge_pages(&self, buffer: &mut Buffer, detail: &mut Detail) {
        for size in super::v2::page_sizes() {
            let file = |what: &str| path(&self.hugetlb, &format!("hugetlb.{size}.{what}"));
            let Some(usage) = buffer.number(&file("usage_in_bytes")) else { continue };
            let peak = buffer.number(&file("max_usage_in_bytes")).unwrap_or(usage);
            detail.huge_pages.push((size.clone(), HugePages { usage, peak }));
        }
    }
}
