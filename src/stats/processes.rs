//! What a container's processes hold: descriptors and sockets, and the limit on them.
//!
//! It takes a look at every descriptor of every process, so it is done for metrics only, not at every scrape, and not
//! without end: a container with very many shows what was counted up to the bound.

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};

/// How long a count is shown.
const FRESH: Duration = Duration::from_secs(30);
/// How long the first process's limit is shown: it hardly ever changes.
const LIMIT_FRESH: Duration = Duration::from_secs(300);
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
pub(super) struct Kept {
    counted: Option<(Instant, Processes)>,
    limit: Option<(Instant, Option<u64>)>,
}

impl Kept {
    /// A count that is not too old.
    pub(super) fn read(&mut self, first: u32, all: &[u32]) -> Processes {
        if let Some((at, kept)) = &self.counted
            && at.elapsed() < FRESH
        {
            return *kept;
        }
        let proc = Path::new("/proc");
        let limit = match self.limit {
            Some((at, limit)) if at.elapsed() < LIMIT_FRESH => limit,
            _ => {
                let limits = std::fs::read_to_string(proc.join(first.to_string()).join("limits"));
                let limit = descriptor_limit(&limits.unwrap_or_default());
                self.limit = Some((Instant::now(), limit));
                limit
            }
        };
        let counted = Processes { descriptor_limit: limit, ..count(proc, all) };
        self.counted = Some((Instant::now(), counted));
        counted
    }
}

fn count(proc: &Path, all: &[u32]) -> Processes {
    /// As a socket's link begins; a link is read no further.
    const SOCKET: &[u8] = b"socket:";
    let mut counted = Processes::default();
    let mut space = [MaybeUninit::uninit(); 4096];
    for pid in all {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(directory) = openat(CWD, proc.join(pid.to_string()).join("fd"), flags, Mode::empty()) else {
            continue;
        };
        let mut entries = RawDir::new(&directory, &mut space);
        while let Some(Ok(entry)) = entries.next() {
            if counted.descriptors >= BOUND {
                return counted;
            }
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            counted.descriptors += 1;
            let mut link = [0; SOCKET.len()];
            if readlinkat_raw(&directory, name, &mut link[..]).is_ok_and(|_| link == SOCKET) {
                counted.sockets += 1;
            }
        }
    }
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
        let counted = count(proc.path(), &[7, 8]);
        assert_eq!(counted, Processes { descriptors: 4, sockets: 2, descriptor_limit: None });
        assert_eq!(descriptor_limit(limits), Some(1024));
    }

    #[test]
    fn no_limit_is_none() {
        assert_eq!(descriptor_limit("Max open files            unlimited   unlimited   files\n"), None);
    }
}
