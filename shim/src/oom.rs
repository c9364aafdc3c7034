//! Processes that the kernel kills for want of memory.
//!
//! On cgroup v2 the counter is in a file of the container's cgroup, `memory.events` (kernel documentation, cgroup-v2.rst). Where systemd
//! made the cgroup it also removes it, as soon as the last process is gone, and the counter with it. So the file stays open, and is read
//! when the kernel says that it has changed, which is before the process that is killed has ended.
//!
//! On cgroup v1 the kernel writes to an event descriptor that is registered for `memory.oom_control` (cgroup-v1/memory.rst, "OOM
//! Control"), just before it kills.
//!
//! A shim watches where others remove cgroups, and where containerd wants to be told at once. All others read the counter in the end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::sys;
use crate::systemd::Scope;

/// Far longer than the file is, in bytes.
const EVENTS_MAX: usize = 4096;

/// The counter of one cgroup.
#[derive(Debug)]
pub(crate) struct Kills {
    /// `None` when it is gone.
    file: Option<File>,
    /// What becomes readable on cgroup v1.
    event: Option<OwnedFd>,
    count: u64,
}

impl Kills {
    /// Begins to watch where it is needed: where others remove the cgroup, or somebody wants to be told.
    pub(crate) fn watch(directories: &[PathBuf], wanted: bool) -> Option<Self> {
        let directory = match directories.iter().find(|directory| Scope::of(directory).is_some()) {
            Some(scope) => scope.clone(),
            None if wanted => match cgroup::with_file(directories, "memory.events") {
                Some(file) => file.parent()?.to_owned(),
                None => {
                    return Self::of_v1(cgroup::with_file(directories, "memory.oom_control")?.parent()?).ok();
                }
            },
            None => return None,
        };
        Self::of(&directory.join("memory.events"))
    }

    fn of(path: &Path) -> Option<Self> {
        let mut kills = Self { file: Some(File::open(path).ok()?), event: None, count: 0 };
        // What has been read is what changes are told from.
        kills.look();
        Some(kills)
    }

    fn of_v1(directory: &Path) -> io::Result<Self> {
        let (file, event) = (File::open(directory.join("memory.oom_control"))?, sys::event_descriptor()?);
        let registration = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
        fs::write(directory.join("cgroup.event_control"), registration)?;
        Ok(Self { file: Some(file), event: Some(event), count: 0 })
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> Option<(RawFd, i16)> {
        let file = self.file.as_ref()?;
        Some(match &self.event {
            Some(event) => (event.as_raw_fd(), libc::POLLIN),
            None => (file.as_raw_fd(), libc::POLLPRI),
        })
    }

    /// Something happened: whether it was that memory ran out.
    pub(crate) fn happened(&mut self) -> bool {
        let before = self.count;
        let count = self.look();
        match &self.event {
            // Nobody needs to have been killed yet. That the cgroup was removed is told in the same way.
            Some(event) => {
                let told = rustix::io::read(event, &mut [0_u8; 8]).is_ok();
                told && self.file.is_some()
            }
            None => count > before,
        }
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
        assert!(!kills.happened());
        std::fs::write(&file, "low 0\noom 2\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert!(kills.happened() && !kills.happened());
        assert_eq!(kills.look(), 2);
        // As an empty file reads one that is gone: nothing is learnt from it.
        std::fs::write(&file, "").unwrap();
        assert_eq!(kills.look(), 2);
        assert!(Kills::of(&directory.path().join("none")).is_none());
    }
}
