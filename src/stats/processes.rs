//! What a container's processes hold: descriptors and sockets, and the limit on them.
//!
//! It takes a look at every descriptor of every process, so it is done for metrics only, not at every scrape, and not
//! without end: a container with very many shows what was counted up to the bound.

use std::path::Path;
use std::time::{Duration, Instant};

/// How long a count is shown.
const FRESH: Duration = Duration::from_secs(30);
/// Descriptors looked at in one container.
const BOUND: u64 = 10_000;

/// What a container's processes hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Open descriptors.
    pub descriptors: u64,
    /// Those that are sockets.
    pub sockets: u64,
    /// The first process's soft limit of descriptors; `None` when there is none.
    pub descriptor_limit: Option<u64>,
}

/// The last count.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<(Instant, Processes)>);

impl Kept {
    /// A count that is not too old.
    pub(super) fn read(&mut self, first: u32, all: &[u32]) -> Processes {
        if let Some((at, kept)) = &self.0
            && at.elapsed() < FRESH
        {
            return *kept;
        }
        let counted = count(Path::new("/proc"), first, all);
        self.0 = Some((Instant::now(), counted));
        counted
    }
}

fn count(proc: &Path, first: u32, all: &[u32]) -> Processes {
    let mut counted = Processes::default();
    for pid in all {
        let directory = proc.join(pid.to_string()).join("fd");
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if counted.descriptors >= BOUND {
                break;
            }
            counted.descriptors += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if target.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
                counted.sockets += 1;
            }
        }
    }
    let limits = std::fs::read_to_string(proc.join(first.to_string()).join("limits")).unwrap_or_default();
    counted.descriptor_limit = descriptor_limit(&limits);
    counted
}

/// From proc_pid_limits(5): name, soft limit, hard limit, unit.
fn descriptor_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sockets_are_told_from_files() {
        let proc = tempfile::tempdir().unwrap();
        let fd = proc.path().join("7/fd");
        std::fs::create_dir_all(&fd).unwrap();
        for (number, target) in ["socket:[12]", "/etc/passwd", "pipe:[3]", "socket:[13]"].iter().enumerate() {
            std::os::unix::fs::symlink(target, fd.join(number.to_string())).unwrap();
        }
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        std::fs::write(proc.path().join("7/limits"), limits).unwrap();
        let counted = count(proc.path(), 7, &[7, 8]);
        assert_eq!(counted, Processes { descriptors: 4, sockets: 2, descriptor_limit: Some(1024) });
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(descriptor_limit("Max open files            unlimited   unlimited   files\n"), None);
    }
}
