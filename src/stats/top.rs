//! The processes of one container, as `ps` would show them: from its cgroup, and /proc for each (proc_pid_stat(5),
//! proc_pid_status(5)).
//!
//! Nothing of the container is entered. Users are numbered as the container numbers them; names would have to be read from its
//! files. A process that ends meanwhile is left out.

use std::path::Path;

use crate::cgroup::{Cgroup, Error, Mode};

/// Processes listed at most.
const MOST: usize = 10_000;
/// Longest command line that is told, in bytes.
const LONGEST: usize = 4096;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// As the host numbers it.
    pub pid: u32,
    /// Its parent, as the host numbers it.
    pub parent: u32,
    /// As the container's own PID namespace numbers it.
    pub inner_pid: u32,
    /// Effective user, as the container numbers it.
    pub uid: u32,
    /// One letter, as in proc_pid_stat(5): R runs, S sleeps, D waits for a device, Z has ended, T stopped, I idle.
    pub state: String,
    /// Threads.
    pub threads: u32,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Processor time used so far, in nanoseconds.
    pub cpu_nanos: u64,
    /// When it started, in nanoseconds since the Unix epoch.
    pub started_at: i64,
    /// Its command line, or its name in brackets where it has none.
    pub command: String,
}

/// The processes of a container's cgroup and below it, by number. Blocking.
///
/// # Errors
/// When the cgroup can't be read. One that is gone has no processes.
pub fn processes(mode: Mode, cgroup: &Path) -> Result<Vec<ProcessInfo>, Error> {
    let pids = Cgroup::new(mode, cgroup).pids()?;
    let proc = Path::new("/proc");
    let boot = boot_time(proc);
    Ok(pids.into_iter().take(MOST).filter_map(|pid| process(proc, pid, boot)).collect())
}

/// Seconds since the Unix epoch.
fn boot_time(proc: &Path) -> u64 {
    let text = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|time| time.trim().parse().ok()).unwrap_or_default()
}

fn process(proc: &Path, pid: u32, boot: u64) -> Option<ProcessInfo> {
    let directory = proc.join(pid.to_string());
    let read = |name: &str| std::fs::read(directory.join(name)).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    // The name is in parentheses and may hold some itself: what follows the last one is fixed.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1;
    let tail: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| tail.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    // Clock ticks: the kernel tells them at 100 a second on every architecture (USER_HZ).
    let ticks = |count: u64| count.saturating_mul(NANOS / 100);
    let started = boot.saturating_mul(NANOS).saturating_add(ticks(number(19)));
    let outer: u32 = field("Uid")?.split_whitespace().nth(1)?.parse().ok()?;
    let map = read("uid_map").unwrap_or_default();
    Some(ProcessInfo {
        pid,
        parent: u32::try_from(number(1)).unwrap_or_default(),
        inner_pid: field("NSpid")
            .and_then(|pids| pids.split_whitespace().last()?.parse().ok())
            .unwrap_or(pid),
        uid: inside(&String::from_utf8_lossy(&map), outer),
        state: tail.first().copied().unwrap_or("?").to_owned(),
        threads: u32::try_from(number(17)).unwrap_or_default(),
        resident_bytes: field("VmRSS").map_or(0, kilobytes),
        cpu_nanos: ticks(number(11).saturating_add(number(12))),
        started_at: i64::try_from(started).unwrap_or_default(),
        command: command(&read("cmdline").unwrap_or_default(), name),
    })
}

fn kilobytes(text: &str) -> u64 {
    let number = text.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
    number.unwrap_or_default().saturating_mul(1024)
}

/// A host's user as the namespace numbers it (user_namespaces(7): inside, outside, count); itself where it has no number.
fn inside(map: &str, outer: u32) -> u32 {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|text| text.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    for (first, outside, count) in ranges {
        if let Some(offset) = outer.checked_sub(outside)
            && offset < count
        {
            return first.saturating_add(offset);
        }
    }
    outer
}

fn command(arguments: &[u8], name: &str) -> String {
    let words: Vec<String> = arguments
        .get(..arguments.len().min(LONGEST))
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let line = words.join(" ").trim_end().to_owned();
    if line.is_empty() { format!("[{name}]") } else { line }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_with_a_name_that_misleads() {
        let proc = tempfile::tempdir().unwrap();
        let own = proc.path().join("42");
        std::fs::create_dir(&own).unwrap();
        let stat = "42 (a) R (b) S 7 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1000 1 2 3";
        std::fs::write(own.join("stat"), stat).unwrap();
        let status = "Name:\tx\nUid:\t65536\t65636\t0\t0\nNSpid:\t42\t5\nVmRSS:\t    2048 kB\n";
        std::fs::write(own.join("status"), status).unwrap();
        std::fs::write(own.join("uid_map"), "         0      65536      65536\n").unwrap();
        std::fs::write(own.join("cmdline"), b"sleep\x001000\0").unwrap();
        let found = process(proc.path(), 42, 100).unwrap();
        let expected = ProcessInfo {
            pid: 42,
            parent: 7,
            inner_pid: 5,
            uid: 100,
            state: "S".into(),
            threads: 3,
            resident_bytes: 2048 * 1024,
            cpu_nanos: 2 * NANOS,
            started_at: 110_000_000_000,
            command: "sleep 1000".into(),
        };
        assert_eq!(found, expected);
        assert_eq!(process(proc.path(), 43, 100), None, "it ended");
    }

    #[test]
    fn users_without_a_number_keep_the_hosts() {
        let map = "0 100000 10\n10 500000 5";
        assert_eq!(inside(map, 100_003), 3);
        assert_eq!(inside(map, 500_004), 14);
        assert_eq!(inside(map, 0), 0);
        assert_eq!(inside("0 0 4294967295", 1000), 1000);
    }

    #[test]
    fn what_has_no_command_line_goes_by_its_name() {
        assert_eq!(command(b"", "kthread"), "[kthread]");
        assert_eq!(command(b"a\0b c\0", "a"), "a b c");
    }
}
