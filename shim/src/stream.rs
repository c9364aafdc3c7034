//! Copying what the processes of the container write: a pipe or a terminal on one side, the log or a FIFO on the other.
//!
//! Nothing here blocks. A FIFO whose reader does not keep up holds its own stream back through the pipe, and is drained
//! into nothing when it has not moved for a while: a vanished reader never stops the container.
//!
//! Attached clients see the container's own streams as well (see `audience`).

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::audience::Audience;
use crate::log::{Lines, Log, Origin};

/// After this long without progress a FIFO counts as abandoned.
const STALL_MAX: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 16 << 10;

/// Where a stream goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// The container's log.
    Log(Rc<RefCell<Log>>, Lines),
    /// A FIFO, open for reading and writing so that it never breaks.
    Fifo(Fifo),
    /// A file, as it comes. What it does not take is lost: the container is never held up by it.
    File(Rc<File>),
    /// To attached clients only.
    Quiet(Origin),
}

impl Sink {
    fn origin(&self) -> Option<Origin> {
        match self {
            Self::Log(_, lines) => Some(lines.origin()),
            Self::Fifo(_) | Self::File(_) => None,
            Self::Quiet(origin) => Some(*origin),
        }
    }
}

/// A FIFO and what it has not taken yet.
#[derive(Debug)]
pub(crate) struct Fifo {
    file: File,
    pending: Vec<u8>,
    stalled_since: Option<Instant>,
    abandoned: bool,
}

impl Fifo {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), pending: Vec::new(), stalled_since: None, abandoned: false }
    }

    fn push(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
        self.flush();
    }

    /// When it counts as abandoned, while something waits for it.
    fn given_up_at(&self) -> Option<Instant> {
        self.stalled_since.filter(|_| !self.pending.is_empty()).map(|since| since + STALL_MAX)
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(count) if count > 0 => {
                    self.pending.drain(..count);
                    self.stalled_since = None;
                    self.abandoned = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.abandoned => {
                    let since = *self.stalled_since.get_or_insert_with(Instant::now);
                    self.abandoned = since.elapsed() >= STALL_MAX;
                    if !self.abandoned {
                        return;
                    }
                }
                _ => self.pending.clear(),
            }
        }
        self.pending = Vec::new();
    }
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The exec it belongs to; empty for the container's own.
    pub(crate) owner: String,
    source: File,
    sink: Sink,
    audience: Option<(Rc<RefCell<Audience>>, Origin)>,
    /// Given up at this time, when its process is gone.
    pub(crate) deadline: Option<Instant>,
}

impl Stream {
    pub(crate) fn new(owner: &str, source: OwnedFd, sink: Sink) -> Self {
        Self { owner: owner.to_owned(), source: File::from(source), sink, audience: None, deadline: None }
    }

    /// Lets attached clients see the stream.
    pub(crate) fn shown_to(mut self, audience: &Rc<RefCell<Audience>>) -> Self {
        self.audience = self.sink.origin().map(|origin| (Rc::clone(audience), origin));
        self
    }

    /// What to wait for: the source, or the FIFO while it has not taken everything.
    pub(crate) fn interest(&self) -> (RawFd, i16) {
        match &self.sink {
            Sink::Fifo(fifo) if !fifo.pending.is_empty() => (fifo.file.as_raw_fd(), libc::POLLOUT),
            _ => (self.source.as_raw_fd(), libc::POLLIN),
        }
    }

    /// When to look even if nothing happens.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let stalled = match &self.sink {
            Sink::Fifo(fifo) => fifo.given_up_at(),
            Sink::Log(..) | Sink::File(_) | Sink::Quiet(_) => None,
        };
        [self.deadline, stalled].into_iter().flatten().min()
    }

    /// Whether its reader has kept it waiting for too long.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        match &self.sink {
            Sink::Fifo(fifo) => fifo.given_up_at().is_some_and(|at| at <= now),
            Sink::Log(..) | Sink::File(_) | Sink::Quiet(_) => false,
        }
    }

    /// Copies at most `rounds` reads; `false` says that the stream is over.
    pub(crate) fn pump(&mut self, rounds: usize) -> bool {
        let mut buffer = [0_u8; READ_SIZE];
        for _ in 0..rounds {
            if let Sink::Fifo(fifo) = &mut self.sink
                && !fifo.pending.is_empty()
            {
                fifo.flush();
                if !fifo.pending.is_empty() {
                    return true;
                }
            }
            match self.source.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let data = buffer.get(..count).unwrap_or_default();
                    if let Some((audience, origin)) = &self.audience {
                        audience.borrow_mut().show(*origin, data);
                    }
                    match &mut self.sink {
                        Sink::Log(log, lines) => lines.push(&mut log.borrow_mut(), data),
                        Sink::Fifo(fifo) => fifo.push(data),
                        Sink::File(file) => drop(file.as_ref().write_all(data)),
                        Sink::Quiet(_) => {}
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // A terminal whose last user is gone answers EIO.
                Err(_) => return false,
            }
        }
        true
    }

    /// Writes what is left of the last line.
    pub(crate) fn finish(mut self) {
        if let Sink::Log(log, lines) = &mut self.sink {
            lines.finish(&mut log.borrow_mut());
        }
    }

    pub(crate) fn log(&self) -> Option<&Rc<RefCell<Log>>> {
        match &self.sink {
            Sink::Log(log, _) => Some(log),
            Sink::Fifo(_) | Sink::File(_) | Sink::Quiet(_) => None,
        }
    }
}

/// Copies a FIFO into a terminal.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) owner: String,
    source: File,
    target: File,
    pending: Vec<u8>,
}

impl Input {
    pub(crate) fn new(owner: &str, source: OwnedFd, target: OwnedFd) -> Self {
        Self {
            owner: owner.to_owned(),
            source: File::from(source),
            target: File::from(target),
            pending: Vec::new(),
        }
    }

    pub(crate) fn interest(&self) -> (RawFd, i16) {
        if self.pending.is_empty() {
            (self.source.as_raw_fd(), libc::POLLIN)
        } else {
            (self.target.as_raw_fd(), libc::POLLOUT)
        }
    }

    /// Copies what goes; `false` says that it is over.
    pub(crate) fn pump(&mut self) -> bool {
        let mut buffer = [0_u8; 4096];
        if self.pending.is_empty() {
            match self.source.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) => {
                    return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                }
            }
        }
        match self.target.write(&self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn a_reader_that_is_gone_holds_nothing_up_for_ever() {
        let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let ((source, writer), (reader, target)) = (pipe(), pipe());
        let mut writer = File::from(writer);
        let mut fill = || while writer.write(&[b'x'; 4096]).is_ok() {};
        let mut stream = Stream::new("", source, Sink::Fifo(Fifo::new(target)));
        // Until the target takes no more.
        for _ in 0..3 {
            fill();
            assert!(stream.pump(64));
        }
        assert_eq!(stream.interest().1, libc::POLLOUT);
        let soon = stream.next_look().unwrap();
        assert!(!stream.is_overdue(Instant::now()) && stream.is_overdue(soon));
        let Sink::Fifo(fifo) = &mut stream.sink else { unreachable!() };
        fifo.stalled_since = Instant::now().checked_sub(STALL_MAX);
        assert!(stream.is_overdue(Instant::now()) && stream.pump(64));
        // What was there is gone, and nothing is waited for but more of it.
        assert_eq!((stream.interest().1, stream.next_look()), (libc::POLLIN, None));
        assert!(writer.write(b"more").is_ok() && stream.pump(64));
        // One that reads again gets what comes from then on.
        let mut reader = File::from(reader);
        while reader.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
        writer.write_all(b"again").unwrap();
        assert!(stream.pump(64));
        let mut text = [0; 64];
        let count = reader.read(&mut text).unwrap();
        assert_eq!(&text[..count], b"again");
    }
}
