//! Cgroup v2: one directory; every value is with all below it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Buffer, Detail, File, HugePages, Memory, Pressure, Setting, Usage, parse, processes};

#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    cpu_stat: File,
    memory_current: File,
    memory_stat: File,
    memory_max: File,
    swap_current: File,
    swap_max: File,
    tasks: File,
    pressures: [File; 3],
    pub(super) details: Option<Box<Details>>,
}

/// What only metrics ask for.
#[derive(Debug)]
pub(super) struct Details {
    /// Kernel 5.19.
    memory_peak: File,
    memory_low: File,
    memory_events: File,
    tasks_limit: Setting,
    processes: File,
    io_stat: File,
    huge_pages: Vec<(&'static str, File)>,
}

impl Details {
    fn new(directory: &Path) -> Self {
        let file = |name: &str| File::new(directory, name);
        let sizes = page_sizes().iter().map(|size| (size.as_str(), file(&format!("hugetlb.{size}.current"))));
        Self {
            memory_peak: file("memory.peak"),
            memory_low: file("memory.low"),
            memory_events: file("memory.events"),
            tasks_limit: Setting::new(directory, "pids.max"),
            processes: file("cgroup.procs"),
            io_stat: file("io.stat"),
            huge_pages: sizes.collect(),
        }
    }
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
        let file = |name| File::new(directory, name);
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
            details: None,
        }
    }

    pub(super) fn cpu(&mut self, buffer: &mut Buffer) -> Option<u64> {
        self.cpu_and(buffer, &mut Detail::default())
    }

    /// Processor time; what else that file says goes into `detail`.
    fn cpu_and(&mut self, buffer: &mut Buffer, detail: &mut Detail) -> Option<u64> {
        let mut usage = None;
        let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
        parse::pairs(self.cpu_stat.read(buffer)?, |key, value| match key {
            "usage_usec" => usage = Some(nanoseconds(value)),
            "user_usec" => detail.cpu_user_nanoseconds = nanoseconds(value),
            "system_usec" => detail.cpu_system_nanoseconds = nanoseconds(value),
            "nr_periods" => detail.periods = value,
            "nr_throttled" => detail.throttled_periods = value,
            "throttled_usec" => detail.throttled_nanoseconds = nanoseconds(value),
            _ => {}
        });
        usage
    }

    /// What statistics need. `detail` takes what else the same files say.
    pub(super) fn usage(&mut self, buffer: &mut Buffer, detail: Option<&mut Detail>) -> Usage {
        let mut spare = Detail::default();
        let detail = detail.unwrap_or(&mut spare);
        let cpu_nanoseconds = self.cpu_and(buffer, detail);
        // A cgroup that is not there has none of the others either.
        let memory = self.memory(buffer);
        detail.kernel_memory = memory.as_ref().and_then(|memory| memory.kernel).unwrap_or(0);
        let there = cpu_nanoseconds.is_some();
        let mut pressure = |file: &mut File| -> Option<Pressure> {
            parse::pressure(if there { file.read_if_any(buffer)? } else { file.read(buffer)? })
        };
        let [cpu_pressure, memory_pressure, io_pressure] = self.pressures.each_mut().map(&mut pressure);
        Usage {
            cpu_nanoseconds,
            memory,
            tasks: self.tasks.number(buffer),
            cpu_pressure,
            memory_pressure,
            io_pressure,
        }
    }

    fn memory(&mut self, buffer: &mut Buffer) -> Option<Memory> {
        let mut memory = Memory { usage: self.memory_current.number(buffer)?, ..Memory::default() };
        parse::pairs(self.memory_stat.read(buffer)?, |key, value| match key {
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
        memory.limit = self.memory_max.number_if_any(buffer);
        memory.swap = self.swap_current.number_if_any(buffer);
        memory.swap_limit = self.swap_max.number_if_any(buffer);
        Some(memory)
    }

    /// The rest of what metrics need. `only` is the one process that there is, if that is known.
    pub(super) fn detail(&mut self, buffer: &mut Buffer, detail: &mut Detail, only: Option<u32>) {
        let Self { directory, details, .. } = self;
        let files = &mut **details.get_or_insert_with(|| Box::new(Details::new(directory)));
        detail.memory_peak = files.memory_peak.number_if_any(buffer).unwrap_or(0);
        detail.memory_reservation = files.memory_low.number_if_any(buffer).filter(|low| *low != 0);
        if let Some(text) = files.memory_events.read_if_any(buffer) {
            parse::pairs(text, |key, value| match key {
                "max" => detail.memory_limit_hits = value,
                "oom_kill" => detail.oom_kills = value,
                _ => {}
            });
        }
        detail.tasks_limit = files.tasks_limit.number(buffer);
        match only {
            Some(pid) => detail.processes.push(pid),
            None => processes(directory, &mut files.processes, buffer, &mut detail.processes),
        }
        if let Some(text) = files.io_stat.read_if_any(buffer) {
            devices(text, detail);
        }
        for (size, current) in &mut files.huge_pages {
            if let Some(usage) = current.number_if_any(buffer) {
                // v2 keeps no high-water mark of them.
                detail.huge_pages.push(((*size).to_owned(), HugePages { usage, peak: usage }));
            }
        }
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
