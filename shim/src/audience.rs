//! Clients attached to the container: they see what it prints from now on, and type what it reads.
//!
//! A client is a connection that called `Attach` or `AttachInput` and was answered. From then on it sends plain input, whose end
//! is a shut-down writing direction, and is sent frames: a byte for the kind (1 standard output, 2 standard error, 3 skipped), the
//! length in three bytes, the data. A client that does not keep up misses output, and is told how many bytes (as a big-endian
//! `u64`) when it reads again: nobody else ever waits for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::log::Origin;

/// Clients at once.
const MEMBERS_MAX: usize = 32;
/// Output that may wait for one client.
const BACKLOG_MAX: usize = 256 << 10;
/// When the container has ended, how long a client may take to read the rest.
const FAREWELL: Duration = Duration::from_secs(10);
const READ_SIZE: usize = 4096;
/// Reads from one client before others have their turn.
const ROUNDS: usize = 16;

/// The container's standard input, or its terminal.
#[derive(Debug)]
struct Keyboard {
    target: File,
    pending: Vec<u8>,
    /// Ends with the input of the first client that had any.
    once: bool,
    ending: bool,
}

#[derive(Debug)]
struct Member {
    id: u64,
    socket: UnixStream,
    types: bool,
    backlog: Vec<u8>,
    skipped: u64,
}

/// Everybody who is attached.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    members: Vec<Member>,
    keyboard: Option<Keyboard>,
    over: Option<Instant>,
}

impl Audience {
    /// Lets clients type into `target`, a pipe or terminal that does not block.
    pub(crate) fn set_keyboard(&mut self, target: OwnedFd, once: bool) {
        self.keyboard =
            Some(Keyboard { target: File::from(target), pending: Vec::new(), once, ending: false });
    }

    /// Nobody can type any more.
    pub(crate) fn close_keyboard(&mut self) {
        self.keyboard = None;
    }

    /// Whether somebody could type.
    pub(crate) fn has_keyboard(&self) -> bool {
        self.keyboard.is_some()
    }

    pub(crate) fn full(&self) -> bool {
        self.members.len() >= MEMBERS_MAX
    }

    /// Takes a client over; `unsent` is what it has not read of its answer.
    pub(crate) fn admit(&mut self, id: u64, socket: UnixStream, unsent: Vec<u8>, types: bool) {
        self.members.push(Member { id, socket, types, backlog: unsent, skipped: 0 });
    }

    /// What the container printed.
    pub(crate) fn show(&mut self, origin: Origin, data: &[u8]) {
        let kind = match origin {
            Origin::Stdout => 1,
            Origin::Stderr => 2,
        };
        let mut typed = false;
        self.members.retain_mut(|member| {
            let stays = member.show(kind, data).is_ok();
            // Who is found gone here is gone as well as who hangs up.
            typed |= !stays && member.types;
            stays
        });
        end_input(&mut self.keyboard, typed);
    }

    /// The container has ended and printed all: its clients are let go when they have read it.
    pub(crate) fn end(&mut self) {
        self.keyboard = None;
        if self.members.is_empty() {
            self.over = None;
            return;
        }
        let since = *self.over.get_or_insert_with(Instant::now);
        let late = since.elapsed() >= FAREWELL;
        self.members.retain(|member| !late && !member.backlog.is_empty());
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.over.filter(|_| !self.members.is_empty()).map(|since| since + FAREWELL)
    }

    /// What to wait for: clients by id, and the keyboard.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (RawFd, i16, Option<u64>)> {
        let blocked = self.keyboard.as_ref().is_some_and(|keyboard| !keyboard.pending.is_empty());
        let keyboard = self.keyboard.iter().filter(move |_| blocked);
        let members = self.members.iter().map(move |member| {
            let read = if member.types && blocked { 0 } else { libc::POLLIN };
            let write = if member.backlog.is_empty() { 0 } else { libc::POLLOUT };
            // Half-closed clients are always readable: what matters of them is that they hang up, which is always told.
            let read = if member.ended() { 0 } else { read };
            (member.socket.as_raw_fd(), read | write, Some(member.id))
        });
        members.chain(keyboard.map(|keyboard| (keyboard.target.as_raw_fd(), libc::POLLOUT, None)))
    }

    /// Something happened at a client.
    pub(crate) fn serve(&mut self, id: u64, events: i16) {
        let Some(index) = self.members.iter().position(|member| member.id == id) else { return };
        let Some(member) = self.members.get_mut(index) else { return };
        let mut stays = member.flush().is_ok();
        if stays && events & libc::POLLIN != 0 {
            stays = member.read(&mut self.keyboard);
        }
        if !stays || events & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
            let member = self.members.swap_remove(index);
            if !member.ended() {
                end_input(&mut self.keyboard, member.types);
            }
        }
    }

    /// The keyboard takes more.
    pub(crate) fn type_on(&mut self) {
        let done = self.keyboard.as_mut().is_some_and(|keyboard| keyboard.flush().is_err());
        if done {
            self.keyboard = None;
        }
    }
}

fn end_input(keyboard: &mut Option<Keyboard>, typed: bool) {
    if let Some(open) = keyboard.as_mut().filter(|open| open.once && typed) {
        open.ending = true;
        if open.flush().is_err() {
            *keyboard = None;
        }
    }
}

impl Keyboard {
    /// Writes what waits; an error says that the keyboard is to be closed.
    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match self.target.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pending = Vec::new();
        if self.ending { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}

impl Member {
    /// It has said all.
    fn ended(&self) -> bool {
        !self.types
    }

    fn show(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if self.backlog.len() + data.len() > BACKLOG_MAX {
            self.skipped += length;
            return Ok(());
        }
        if self.skipped > 0 {
            let skipped = std::mem::take(&mut self.skipped);
            self.queue(3, &skipped.to_be_bytes());
        }
        self.queue(kind, data);
        self.flush()
    }

    fn queue(&mut self, kind: u8, data: &[u8]) {
        let [_, a, b, c] = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        self.backlog.extend_from_slice(&[kind, a, b, c]);
        self.backlog.extend_from_slice(data);
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            let rest = self.backlog.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                self.backlog = Vec::new();
                return Ok(());
            }
            match self.socket.write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.backlog.drain(..sent);
        result
    }

    /// Passes input on; `false` says that the client is gone.
    fn read(&mut self, keyboard: &mut Option<Keyboard>) -> bool {
        let mut buffer = [0_u8; READ_SIZE];
        for _ in 0..ROUNDS {
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    end_input(keyboard, self.types);
                    self.types = false;
                    return true;
                }
                Ok(count) => {
                    let Some(open) = keyboard.as_mut() else { continue };
                    open.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    if open.flush().is_err() {
                        *keyboard = None;
                    } else if !open.pending.is_empty() {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
