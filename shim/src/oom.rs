//! Processes that the kernel kills for want of memory, on cgroup v2.
//!
//! The counter is in a file of the container's cgroup, `memory.events` (kernel documentation, cgroup-v2.rst). Where systemd made the
//! cgroup it also removes it, as soon as the last process is gone, and the counter with it. So the file stays open, and is read when
//! the kernel says that it has changed, which is before the process that is killed has ended.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::systemd::Scope;

/// Far longer than the file is, in bytes.
const EVENTS_MAX: usize = 4096;

/// The counter of one cgroup.
#[derive(Debug)]
pub(crate) struct Kills {
    /// `None` when it is gone.
    file: Option<File>,
    count: u64,
}

impl Kills {
    /// Begins to watch where it is needed: `None` for cgroups that others do not remove.
    pub(crate) fn watch(directories: &[PathBuf]) -> Option<Self> {
        let directory = directories.iter().find(|directory| Scope::of(directory).is_some())?;
        Self::of(&directory.join("memory.events"))
    }

    fn of(path: &Path) -> Option<Self> {
        let mut kills = Self { file: Some(File::open(path).ok()?), count: 0 };
        // What has been read is what changes are told from.
        kills.look();
        Some(kills)
    }

    /// What to wait for: exceptional conditions on this descriptor.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads the file, while it is there, and says how many were killed.
    pub(crate) fn look(&mut self) -> u64 {
        let mut text = [0; EVENTS_MAX];
        match self.file.as_ref().map(|file| file.read_at(&mut text, 0)) {
            Some(Ok(length)) => {
                let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
                self.count = self.count.max(cgroup::killed(&text));
            }
            // The cgroup is gone: its descriptor would be ready for good.
            Some(Err(_)) => self.file = None,
            None => {}
        }
        self.count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_counted_outlives_the_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.events");
        std::fs::write(&file, "low 0\noom 0\noom_kill 0\noom_group_kill 0\n").unwrap();
        let mut kills = Kills::of(&file).unwrap();
        assert_eq!(kills.look(), 0);
        std::fs::write(&file, "low 0\noom 2\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(kills.look(), 2);
        // As an empty file reads one that is gone: nothing is learnt from it.
        std::fs::write(&file, "").unwrap();
        assert_eq!(kills.look(), 2);
        assert!(Kills::of(&directory.path().join("none")).is_none());
    }
}
