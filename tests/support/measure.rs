//! What processes cost.

use std::path::Path;
use std::time::Duration;

/// Count and proportional set size (KiB, all together) of the processes whose executable is `program` and
/// whose command line or directory names `part`.
pub(crate) fn proportional_memory(program: &str, part: &Path) -> (usize, usize) {
    let pids = pids_of(program, part);
    (pids.len(), pids.into_iter().map(pss).sum())
}

/// The processes that [`proportional_memory`] counts.
pub(crate) fn pids_of(program: &str, part: &Path) -> Vec<u32> {
    let part = part.to_string_lossy();
    let mut pids = Vec::new();
    for pid in processes() {
        let directory = Path::new("/proc").join(pid.to_string());
        let command = std::fs::read(directory.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let first = command.split(' ').next().unwrap_or_default();
        let cwd = std::fs::read_link(directory.join("cwd")).unwrap_or_default();
        let ours = command.contains(&*part) || cwd.to_string_lossy().contains(&*part);
        if Path::new(first).file_name().is_some_and(|name| name == program) && ours {
            pids.push(pid);
        }
    }
    pids
}

/// Proportional set size of one process, KiB.
pub(crate) fn pss(pid: u32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Anonymous memory of one process, KiB: its own, however many others share its program's pages.
pub(crate) fn anonymous(pid: u32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Open descriptors of one process, without the cgroup files that statistics keep open: these come and go with the containers,
/// but not at once.
pub(crate) fn descriptors(pid: u32) -> usize {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links
        .filter(|entry| {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            !target.starts_with("/sys/fs/cgroup")
        })
        .count()
}

/// All process ids of this PID namespace.
pub(crate) fn processes() -> Vec<u32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Time on a processor that a process has used so far, with all its threads, those that have ended too.
pub(crate) fn time_on_cpu(pid: u32) -> Duration {
    super::sys::process_clock(pid)
}

/// The middle value (the mean of the two in the middle).
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}
