//! Cgroup v2: one directory; every value is with all below it.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Buffer, Detail, HugePages, Memory, Pressure, Usage, parse, path, processes};

#[derive(Debug)]
pub(super) struct Files {
    cpu_stat: CString,
    memory_current: CString,
    memory_stat: CString,
    memory_max: CString,
    swap_current: CString,
    swap_max: CString,
    tasks: CString,
    pressures: [CString; 3],
    directory: PathBuf,
}

/// Sizes of huge pages that this machine has, as cgroup files name them.
pub(super) fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let directories = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let kilobytes = directories.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
        });
        let mut kilobytes: Vec<_> = kilobytes.collect();
        kilobytes.sort_unstable();
        kilobytes.into_iter().map(page_size).collect()
    })
}

/// In the largest unit that fits, as the kernel does it.
pub(super) fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

impl Files {
    pub(super) fn new(directory: &Path) -> Self {
        let file = |name| path(directory, name);
        Self {
            cpu_stat: file("cpu.stat"),
            memory_current: file("memory.current"),
            memory_stat: file("memory.stat"),
            memory_max: file("memory.max"),
            swap_current: file("memory.swap.current"),
            swap_max: file("memory.swap.max"),
            tasks: file("pids.current"),
            pressures: [file("cpu.pressure"), file("memory.pressure"), file("io.pressure")],
            directory: directory.to_owned(),
        }
    }

    pub(super) fn cpu(&self, buffer: &mut Buffer) -> Option<u64> {
        let mut usage = None;
        parse::pairs(buffer.read(&self.cpu_stat)?, |key, value: u64| {
            if key == "usage_usec" {
                usage = Some(value.saturating_mul(1000));
            }
        });
        usage
    }

    pub(super) fn usage(&self, buffer: &mut Buffer) -> Usage {
        let mut pressure = |file: &CString| -> Option<Pressure> { parse::pressure(buffer.read(file)?) };
        let [cpu_pressure, memory_pressure, io_pressure] = self.pressures.each_ref().map(&mut pressure);
        Usage {
            cpu_nanoseconds: self.cpu(buffer),
            memory: self.memory(buffer),
            tasks: buffer.number(&self.tasks),
            cpu_pressure,
            memory_pressure,
            io_pressure,
        }
    }

    fn memory(&self, buffer: &mut Buffer) -> Option<Memory> {
        let mut memory = Memory { usage: buffer.number(&self.memory_current)?, ..Memory::default() };
        parse::pairs(buffer.read(&self.memory_stat)?, |key, value| match key {
            "anon" => memory.rss = value,
            "file" => memory.cache = value,
            "kernel" => memory.kernel = Some(value),
            "file_mapped" => memory.mapped_file = value,
            "inactive_file" => memory.inactive_file = value,
            "active_file" => memory.active_file = value,
            "pgfault" => memory.page_faults = value,
            "pgmajfault" => memory.major_page_faults = value,
            _ => {}
        });
        memory.limit = buffer.number(&self.memory_max);
        memory.swap = buffer.number(&self.swap_current);
        memory.swap_limit = buffer.number(&self.swap_max);
        Some(memory)
    }

    pub(super) fn detail(&self, buffer: &mut Buffer) -> Detail {
        let mut detail = Detail::default();
        let file = |name: &str| path(&self.directory, name);
        if let Some(text) = buffer.read(&self.cpu_stat) {
            parse::pairs(text, |key, value: u64| match key {
                "user_usec" => detail.cpu_user_nanoseconds = value.saturating_mul(1000),
                "system_usec" => detail.cpu_system_nanoseconds = value.saturating_mul(1000),
                "nr_periods" => detail.periods = value,
                "nr_throttled" => detail.throttled_periods = value,
                "throttled_usec" => detail.throttled_nanoseconds = value.saturating_mul(1000),
                _ => {}
            });
        }
        // Kernel 5.19.
        detail.memory_peak = buffer.number(&file("memory.peak")).unwrap_or(0);
        detail.memory_reservation = buffer.number(&file("memory.low")).filter(|low| *low != 0);
        if let Some(text) = buffer.read(&file("memory.events")) {
            parse::pairs(text, |key, value| match key {
                "max" => detail.memory_limit_hits = value,
                "oom_kill" => detail.oom_kills = value,
                _ => {}
            });
        }
        if let Some(text) = buffer.read(&self.memory_stat) {
            parse::pairs(text, |key, value| {
                if key == "kernel" {
                    detail.kernel_memory = value;
                }
            });
        }
        detail.tasks_limit = buffer.number(&file("pids.max"));
        processes(&self.directory, buffer, &mut detail.processes);
        if let Some(text) = buffer.read(&file("io.stat")) {
            devices(text, &mut detail);
        }
        for size in page_sizes() {
            if let Some(usage) = buffer.number(&file(&format!("hugetlb.{size}.current"))) {
                // v2 keeps no high-water mark of them.
                detail.huge_pages.push((size.clone(), HugePages { usage, peak: usage }));
            }
        }
        detail
    }
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn devices(text: &str, detail: &mut Detail) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(device) = words.next().and_then(|name| parse::device(&mut detail.devices, name)) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
}
