//! Work done by a forked child of the shim, and the channel it reports on.
//!
//! What needs much memory, may block or changes namespaces runs in a child that ends afterwards, so the resident process stays
//! small and answers at any time. The child reports in frames (tag, length, bytes) over a socket pair; a descriptor may come with
//! a frame. `Done` or `Failed` ends the job, and for an exec the end of the stream does: the last descriptor on it closes
//! when the command's image takes over.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;

use crate::status::{Code, Failure};
use crate::sys::{self, Fork};

/// A part: its name, and when it began and ended, in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Timing {
    pub(crate) name: String,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// One report of a child.
#[derive(Debug)]
pub(crate) enum Report {
    /// The process that was made.
    Pid(i32),
    /// A directory of the container's cgroup.
    Cgroup(String),
    /// The master side of the process' terminal.
    Terminal(OwnedFd),
    /// A logger that was started, by number and descriptor.
    Logger(i32, OwnedFd),
    /// A part of the work is over.
    Took(Timing),
    /// Finished well.
    Done,
    /// Finished badly.
    Failed(Failure),
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct Reporter {
    socket: OwnedFd,
}

const MESSAGE_MAX: usize = 16 << 10;

impl Reporter {
    fn send(&self, tag: u8, body: &[u8], fd: Option<RawFd>) {
        let body = body.get(..MESSAGE_MAX).unwrap_or(body);
        let mut frame = vec![tag];
        frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        frame.extend_from_slice(body);
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        // Nobody to tell when this fails: the shim then sees the child's end without a result, which it reports.
        let _ = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&frame)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    pub(crate) fn pid(&self, pid: i32) {
        self.send(b'P', &pid.to_le_bytes(), None);
    }

    pub(crate) fn cgroup(&self, directory: &Path) {
        self.send(b'C', directory.as_os_str().as_encoded_bytes(), None);
    }

    pub(crate) fn terminal(&self, master: BorrowedFd<'_>) {
        self.send(b'F', &[], Some(master.as_raw_fd()));
    }

    /// A logger that was started for the container or exec, and is ready.
    pub(crate) fn logger(&self, pid: i32, process: BorrowedFd<'_>) {
        self.send(b'L', &pid.to_le_bytes(), Some(process.as_raw_fd()));
    }

    /// A part of the work is over; both in nanoseconds since 1970.
    pub(crate) fn took(&self, name: &str, start: u64, end: u64) {
        let body = [&start.to_le_bytes(), &end.to_le_bytes(), name.as_bytes()].concat();
        self.send(b'S', &body, None);
    }

    pub(crate) fn done(&self) {
        self.send(b'D', &[], None);
    }

    /// Says what went wrong in words that beat whatever `failed` says later.
    pub(crate) fn reason(&self, reason: &Failure) {
        self.send(b'M', &coded(reason), None);
    }

    /// Says whose fault it is, when another says what happened.
    pub(crate) fn code(&self, code: Code) {
        self.send(b'K', &[code as u8], None);
    }

    /// One error that a library logged on its way.
    pub(crate) fn trace(&self, line: &str) {
        self.send(b'T', line.as_bytes(), None);
    }

    pub(crate) fn failed(&self, failure: &Failure) {
        self.send(b'E', &coded(failure), None);
    }

    /// A reporter on the channel of a job that [`Job::of`] watches.
    pub(crate) fn on(socket: OwnedFd) -> Self {
        Self { socket }
    }

    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }
}

/// A failure as it travels: a byte of code, then the message.
fn coded(failure: &Failure) -> Vec<u8> {
    let mut body = vec![failure.code as u8];
    body.extend_from_slice(failure.message.as_bytes());
    body
}

fn decoded(body: &[u8]) -> Failure {
    let code = Code::from_byte(body.first().copied().unwrap_or(0));
    Failure::new(code, String::from_utf8_lossy(body.get(1..).unwrap_or_default()))
}

fn took(body: &[u8]) -> Option<Timing> {
    let (start, rest) = body.split_first_chunk::<8>()?;
    let (end, name) = rest.split_first_chunk::<8>()?;
    let name = String::from_utf8_lossy(name).into_owned();
    Some(Timing { name, start: u64::from_le_bytes(*start), end: u64::from_le_bytes(*end) })
}

/// The shim's end.
#[derive(Debug)]
pub(crate) struct Job {
    /// The child that works.
    pub(crate) pid: i32,
    socket: OwnedFd,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
    reason: Option<Failure>,
    code: Option<Code>,
    traces: Vec<String>,
}

/// Starts `work` in a child, which ends when `work` returns. `keep` are descriptors it needs besides 0 to 2.
pub(crate) fn spawn(keep: &[RawFd], work: impl FnOnce(&Reporter)) -> Result<Job, Failure> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|error| Failure::doing("making a socket pair", &error))?;
    match sys::fork().map_err(|error| Failure::doing("forking", &error))? {
        Fork::Child => {
            sys::default_signals();
            let mut keep = keep.to_vec();
            keep.push(theirs.as_raw_fd());
            std::mem::forget(ours);
            sys::close_others(&keep);
            work(&Reporter { socket: theirs });
            sys::exit_now(0)
        }
        Fork::Parent(pid) => Job::watching(pid, ours),
    }
}

impl Job {
    /// A job for process `pid`, which is there already, and the end of the channel that it is to get.
    pub(crate) fn of(pid: i32) -> Result<(Self, OwnedFd), Failure> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| Failure::doing("making a socket pair", &error))?;
        Ok((Self::watching(pid, ours)?, theirs))
    }

    fn watching(pid: i32, socket: OwnedFd) -> Result<Self, Failure> {
        sys::set_nonblocking(socket.as_raw_fd(), true)
            .map_err(|error| Failure::doing("preparing a channel", &error))?;
        Ok(Self {
            pid,
            socket,
            buffer: Vec::new(),
            fds: Vec::new(),
            reason: None,
            code: None,
            traces: Vec::new(),
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads reports; the second value says that the stream ended.
    pub(crate) fn read(&mut self) -> (Vec<Report>, bool) {
        let mut ended = false;
        loop {
            let mut bytes = [0_u8; 1024];
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let (count, fds) =
                match recvmsg::<()>(self.fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                    Ok(message) => {
                        let fds: Vec<RawFd> = message.cmsgs().map_or_else(
                            |_| Vec::new(),
                            |list| {
                                list.filter_map(|control| match control {
                                    ControlMessageOwned::ScmRights(fds) => Some(fds),
                                    _ => None,
                                })
                                .flatten()
                                .collect()
                            },
                        );
                        (message.bytes, fds)
                    }
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(nix::errno::Errno::EINTR) => continue,
                    Err(_) => (0, Vec::new()),
                };
            self.fds.extend(fds.into_iter().filter_map(|fd| sys::inherited(fd).ok()));
            if count == 0 {
                ended = true;
                break;
            }
            self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
        (self.reports(), ended)
    }

    fn reports(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut used = 0;
        while let Some(header) = self.buffer.get(used..used + 5) {
            let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(MESSAGE_MAX);
            let tag = header[0];
            let Some(body) = self.buffer.get(used + 5..used + 5 + length) else { break };
            let text = || String::from_utf8_lossy(body).into_owned();
            match tag {
                b'P' => reports.push(Report::Pid(body.try_into().map_or(0, i32::from_le_bytes))),
                b'C' => reports.push(Report::Cgroup(text())),
                b'F' if !self.fds.is_empty() => reports.push(Report::Terminal(self.fds.remove(0))),
                b'L' if !self.fds.is_empty() => {
                    let pid = body.try_into().map_or(0, i32::from_le_bytes);
                    reports.push(Report::Logger(pid, self.fds.remove(0)));
                }
                b'S' => reports.extend(took(body).map(Report::Took)),
                b'D' => reports.push(Report::Done),
                b'M' => self.reason = Some(decoded(body)),
                b'K' => self.code = body.first().map(|byte| Code::from_byte(*byte)),
                b'T' if self.traces.len() < 8 => self.traces.push(text()),
                b'E' => reports.push(Report::Failed(self.clearest(decoded(body)))),
                _ => {}
            }
            used += 5 + length;
        }
        self.buffer.drain(..used);
        reports
    }

    /// The clearest thing known about what went wrong.
    pub(crate) fn clearest(&self, failure: Failure) -> Failure {
        if let Some(reason) = &self.reason {
            return Failure::new(reason.code, reason.message.clone());
        }
        let code = self.code.unwrap_or(failure.code);
        if self.traces.is_empty() {
            return Failure::new(code, failure.message);
        }
        Failure::new(code, format!("{} ({})", failure.message, self.traces.join("; ")))
    }
}
