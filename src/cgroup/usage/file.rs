//! One file of a cgroup, kept open between scrapes.
//!
//! Opening such a file costs ten times what reading it does (measured: 5 µs of path look-up, open file and its buffer, 0.5 µs of
//! reading), and a scrape reads a dozen for every container. So a file that was read once stays open and is read from its
//! beginning again. An open file keeps nothing of a cgroup alive but its name: reading it after the cgroup is gone says so.
//!
//! Each costs a descriptor and some 4.5 KiB of the kernel's memory. Never more than a quarter of the process's descriptors are
//! spent on it, nor more than [`OPEN_MAX`]; what comes on top is opened and closed each time.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::parse;

/// Most files kept open, 18 MiB of the kernel's memory: those of 250 containers.
const OPEN_MAX: u64 = 4_096;
/// How long a file that is not there is not looked for again.
const ABSENT: Duration = Duration::from_secs(30);

static OPEN: AtomicU64 = AtomicU64::new(0);

/// The right to keep one file open.
#[derive(Debug)]
struct Slot;

impl Slot {
    fn take() -> Option<Self> {
        static LIMIT: OnceLock<u64> = OnceLock::new();
        let limit = *LIMIT.get_or_init(|| {
            let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            descriptors.map_or(OPEN_MAX, |limit| OPEN_MAX.min(limit / 4))
        });
        let more = |open: u64| (open < limit).then_some(open + 1);
        OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file of a cgroup.
#[derive(Debug)]
pub(super) struct File {
    path: CString,
    open: Option<(OwnedFd, Slot)>,
    absent: Option<Instant>,
}

impl File {
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        // A path with a NUL is no cgroup's: it reads as one that is not there.
        let path = CString::new(directory.join(name).as_os_str().as_bytes()).unwrap_or_default();
        Self { path, open: None, absent: None }
    }

    /// Its content; `None` when it can't be read.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut Buffer) -> Option<&'a str> {
        if let Some((file, _)) = &self.open {
            match buffer.fill(file) {
                Ok(length) => return buffer.text(length),
                // Another cgroup of that name may have taken its place.
                Err(_) => self.open = None,
            }
        }
        let file = match openat(CWD, self.path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(error) => {
                self.absent = (error == Errno::NOENT).then(Instant::now);
                return None;
            }
        };
        self.absent = None;
        let length = buffer.fill(&file).ok()?;
        self.open = Slot::take().map(|slot| (file, slot));
        buffer.text(length)
    }

    /// The same for a file that not every kernel has, in a cgroup that is there.
    pub(super) fn read_if_any<'a>(&mut self, buffer: &'a mut Buffer) -> Option<&'a str> {
        match self.absent {
            Some(at) if at.elapsed() < ABSENT => None,
            _ => self.read(buffer),
        }
    }

    pub(super) fn number(&mut self, buffer: &mut Buffer) -> Option<u64> {
        parse::number(self.read(buffer)?)
    }

    pub(super) fn number_if_any(&mut self, buffer: &mut Buffer) -> Option<u64> {
        parse::number(self.read_if_any(buffer)?)
    }
}

/// A file with a number that somebody sets: it changes rarely, and is read that often.
#[derive(Debug)]
pub(super) struct Setting {
    file: File,
    kept: Option<(Instant, Option<u64>)>,
}

/// How long such a number is good for.
const SETTING: Duration = Duration::from_secs(30);

impl Setting {
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        Self { file: File::new(directory, name), kept: None }
    }

    /// The number, if there is such a file and it is one.
    pub(super) fn number(&mut self, buffer: &mut Buffer) -> Option<u64> {
        match self.kept {
            Some((at, number)) if at.elapsed() < SETTING => number,
            _ => {
                let number = self.file.number_if_any(buffer);
                self.kept = Some((Instant::now(), number));
                number
            }
        }
    }
}

/// Where files are read into.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        // Larger than any file of a cgroup but `cgroup.procs`.
        Self(vec![0; 16 * 1024])
    }
}

impl Buffer {
    /// Reads a file from its beginning; returns how much there is.
    fn fill(&mut self, file: &OwnedFd) -> Result<usize, Errno> {
        let mut length = 0;
        loop {
            let Some(free) = self.0.get_mut(length..).filter(|free| !free.is_empty()) else {
                let larger = self.0.len() * 2;
                self.0.resize(larger, 0);
                continue;
            };
            let offset = u64::try_from(length).unwrap_or(u64::MAX);
            match rustix::io::pread(file, free, offset) {
                // Far from a page: the kernel has these files ready as a whole and had no more.
                Ok(count) if count == 0 || length + count < WHOLE => return Ok(length + count),
                Ok(count) => length += count,
                Err(Errno::INTR) => {}
                // ENODEV: removed since it was opened.
                Err(error) => return Err(error),
            }
        }
    }

    fn text(&self, length: usize) -> Option<&str> {
        std::str::from_utf8(self.0.get(..length)?).ok()
    }
}

/// A read that brings less than this brought all: the kernel's own buffer is a page, and a line is not cut.
const WHOLE: usize = 2_048;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_is_read_anew_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pids.current");
        let (mut file, mut buffer) = (File::new(root.path(), "pids.current"), Buffer::default());
        assert_eq!(file.number(&mut buffer), None);
        std::fs::write(&path, "7\n").unwrap();
        assert_eq!(file.number_if_any(&mut buffer), None, "not looked for so soon");
        assert_eq!(file.number(&mut buffer), Some(7));
        std::fs::write(&path, "12345\n").unwrap();
        assert_eq!(file.number(&mut buffer), Some(12345));
        std::fs::write(&path, "8\n").unwrap();
        assert_eq!(file.number_if_any(&mut buffer), Some(8));
    }

    #[test]
    fn long_files_are_read_to_their_end() {
        let root = tempfile::tempdir().unwrap();
        let long: String = (0..20_000).map(|number| format!("{number}\n")).collect();
        std::fs::write(root.path().join("cgroup.procs"), &long).unwrap();
        let (mut file, mut buffer) = (File::new(root.path(), "cgroup.procs"), Buffer::default());
        for _ in 0..2 {
            assert_eq!(file.read(&mut buffer), Some(long.as_str()));
        }
    }
}
