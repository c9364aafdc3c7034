//! FIFOs that a client reads. What a short-lived process wrote is lost when nobody has its FIFO open any more, and a client may be
//! slow to open its end: after the process' end the shim keeps FIFOs open until they are read empty.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::Shim;

/// A client that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);

/// A FIFO that a process of ours writes, or has written.
#[derive(Debug)]
pub(super) struct Unread {
    /// The exec; empty for the container itself.
    owner: String,
    held: OwnedFd,
    /// Since the process has ended.
    until: Option<Instant>,
}

impl Unread {
    fn open(owner: &str, path: &str) -> Option<Self> {
        // Berth's daemon gives pipes of its own, which it has open: there is nothing to wait for.
        if !path.starts_with('/') || path.starts_with("/proc/") {
            return None;
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let held = openat(CWD, path, flags, Mode::empty()).ok()?;
        let is_fifo =
            fstat(&held).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Fifo);
        is_fifo.then(|| Self { owner: owner.to_owned(), held, until: None })
    }

    fn is_empty(&self) -> bool {
        rustix::io::ioctl_fionread(&self.held).is_ok_and(|bytes| bytes == 0)
    }

    /// When to look again; not before the process has ended.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.until.map(|_| Instant::now() + STEP)
    }
}

impl Shim {
    /// Keeps FIFOs open that a process will write.
    pub(super) fn keep_open(&mut self, owner: &str, paths: [&str; 2]) {
        self.unread.extend(paths.into_iter().filter_map(|path| Unread::open(owner, path)));
    }

    /// The process has ended.
    pub(super) fn let_read(&mut self, owner: &str) {
        let until = Instant::now() + PATIENCE;
        self.unread.iter_mut().filter(|one| one.owner == owner).for_each(|one| one.until = Some(until));
    }

    /// Lets go what has been read.
    pub(super) fn look_for_readers(&mut self) {
        let (now, streams) = (Instant::now(), &self.streams);
        self.unread.retain(|one| match one.until {
            None => true,
            Some(until) => {
                let written = !streams.iter().any(|stream| stream.owner == one.owner);
                until > now && !(written && one.is_empty())
            }
        });
    }

    /// Nobody wants it any more.
    pub(super) fn forget_unread(&mut self, owner: &str) {
        self.unread.retain(|one| one.owner != owner);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    #[test]
    fn only_fifos_are_kept_open_and_only_while_they_are_full() {
        let directory = tempfile::tempdir().unwrap();
        let (file, fifo) = (directory.path().join("file"), directory.path().join("fifo"));
        std::fs::write(&file, "x").unwrap();
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(Unread::open("", file.to_str().unwrap()).is_none());
        assert!(Unread::open("", "").is_none());
        let held = Unread::open("", fifo.to_str().unwrap()).unwrap();
        assert!(held.is_empty() && held.next_look().is_none());
        let mut writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        writer.write_all(b"out").unwrap();
        drop(writer);
        assert!(!held.is_empty());
        let mut reader = std::fs::File::open(&fifo).unwrap();
        let mut buffer = [0; 3];
        std::io::Read::read_exact(&mut reader, &mut buffer).unwrap();
        assert!(held.is_empty() && &buffer == b"out");
    }
}
