//! A log file that grows, and is replaced by a new one when it is rotated.
//!
//! Rotation renames the file and asks the runtime to reopen it: the writer goes on with the old file until the new one
//! is there. So the old file is read to its end once the path names another one, and then left. A file that became
//! shorter (copy and truncate) is read from its start.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::tail;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// A line longer than this is passed on in pieces: the CRI splits at 16 KiB, a file from elsewhere may not.
const LONGEST_LINE: usize = 1 << 20;

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the first line.
    Beginning,
    /// With the last lines, so many of them.
    Last(usize),
}

/// A reader of such a file. The file may appear later.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    start: Start,
    open: Option<Open>,
    /// The start of a line whose end is not there yet.
    held: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    position: u64,
}

impl Follower {
    /// A reader of the file at `path`, from `start`.
    pub(crate) fn new(path: PathBuf, start: Start) -> Self {
        Self { path, start, open: None, held: Vec::new() }
    }

    /// Whether the file was there at the last look.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Hands on every line that is complete by now, without its end; with `last`, also one that is not.
    pub(crate) fn poll(&mut self, last: bool, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        loop {
            if self.open.is_none() && !self.open()? {
                break;
            }
            // The path is looked at before the read: what a rotated file gets until then is read, too.
            let replaced = self.is_replaced()?;
            self.read_to_end(each)?;
            if !replaced {
                break;
            }
            self.flush(each)?;
            self.open = None;
            // Only the first file is entered in its middle.
            self.start = Start::Beginning;
        }
        if last { self.flush(each) } else { Ok(()) }
    }

    fn open(&mut self) -> Result<bool> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.describe(error)),
        };
        let metadata = file.metadata().map_err(|error| self.describe(error))?;
        let position = match self.start {
            Start::Beginning => 0,
            Start::Last(count) => tail::start(&file, count).map_err(|error| self.describe(error))?,
        };
        file.seek(SeekFrom::Start(position)).map_err(|error| self.describe(error))?;
        self.open = Some(Open { file, identity: (metadata.dev(), metadata.ino()), position });
        Ok(true)
    }

    /// Whether the path names another file now. One that names none is between rename and reopen: not yet.
    fn is_replaced(&self) -> Result<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok((metadata.dev(), metadata.ino()) != open.identity),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.describe(error)),
        }
    }

    fn read_to_end(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let path = &self.path;
        let context = || format!("reading {}", path.display());
        if open.file.metadata().with_context(context)?.len() < open.position {
            open.file.seek(SeekFrom::Start(0)).with_context(context)?;
            open.position = 0;
            self.held.clear();
        }
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = open.file.read(&mut chunk).with_context(context)?;
            if count == 0 {
                return Ok(());
            }
            open.position += u64::try_from(count).unwrap_or_default();
            self.held.extend_from_slice(chunk.get(..count).unwrap_or_default());
            hand_on(&mut self.held, each)?;
        }
    }

    fn flush(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            each(&held)?;
        }
        Ok(())
    }

    fn describe(&self, error: io::Error) -> anyhow::Error {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => " (logs belong to the daemon's user: try as root)",
            _ => "",
        };
        anyhow::Error::from(error).context(format!("reading {}{hint}", self.path.display()))
    }
}

/// Hands on the whole lines at the front, and keeps the rest.
fn hand_on(held: &mut Vec<u8>, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut rest = held.as_slice();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, tail) = rest.split_at(end);
        each(line)?;
        rest = tail.get(1..).unwrap_or_default();
    }
    if rest.len() > LONGEST_LINE {
        each(rest)?;
        rest = &[];
    }
    *held = rest.to_vec();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn append(path: &Path, text: &str) {
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn poll(follower: &mut Follower, last: bool) -> Vec<String> {
        let mut lines = Vec::new();
        follower
            .poll(last, &mut |line| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap();
        lines
    }

    #[test]
    fn a_file_that_appears_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut follower = Follower::new(path.clone(), Start::Beginning);
        assert!(poll(&mut follower, false).is_empty() && !follower.is_open());
        append(&path, "one\ntw");
        assert_eq!(poll(&mut follower, false), ["one"]);
        append(&path, "o\n");
        assert_eq!(poll(&mut follower, false), ["two"]);
        append(&path, "rest");
        assert!(poll(&mut follower, false).is_empty());
        assert_eq!(poll(&mut follower, true), ["rest"]);
    }

    #[test]
    fn rotation_loses_nothing_and_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        append(&path, "one\n");
        let mut follower = Follower::new(path.clone(), Start::Last(1));
        assert_eq!(poll(&mut follower, false), ["one"]);
        fs::rename(&path, &old).unwrap();
        // The writer has not reopened yet.
        append(&old, "two\n");
        assert_eq!(poll(&mut follower, false), ["two"]);
        append(&old, "three\n");
        append(&path, "four\nfive\n");
        assert_eq!(poll(&mut follower, false), ["three", "four", "five"]);
        append(&path, "six\n");
        assert_eq!(poll(&mut follower, false), ["six"]);
    }

    #[test]
    fn a_truncated_file_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, "a long first line\n");
        let mut follower = Follower::new(path.clone(), Start::Beginning);
        assert_eq!(poll(&mut follower, false).len(), 1);
        fs::write(&path, "new\n").unwrap();
        assert_eq!(poll(&mut follower, false), ["new"]);
    }

    #[test]
    fn endless_lines_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, &"x".repeat(3 * LONGEST_LINE));
        let mut follower = Follower::new(path, Start::Beginning);
        let length: usize = poll(&mut follower, true).iter().map(String::len).sum();
        assert_eq!(length, 3 * LONGEST_LINE);
        assert!(follower.held.capacity() <= 2 * LONGEST_LINE);
    }

    #[test]
    fn an_error_of_the_sink_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, "one\n");
        let error = Follower::new(path, Start::Beginning)
            .poll(false, &mut |_| Err(io::ErrorKind::BrokenPipe.into()))
            .unwrap_err();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::BrokenPipe));
    }
}
