//! Opens the standard streams of a Create or Exec request.
//!
//! | path | meaning |
//! |---|---|
//! | empty | `/dev/null` |
//! | `cri-log:///path` | the shim writes the container's log there (see `log`) |
//! | `/path` | a FIFO made by the client |
//! | `file:///path` | appended to the file; as standard output it takes standard error as well |
//! | `binary:///path?name=value` | a program that the shim starts reads both outputs (see `logger`) |
//! | `attach:` | attached clients only (see `audience`) |
//! | `attach:once` | the same for input, which ends with that of the first client |

use std::cell::RefCell;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, openat};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::log::{Lines, Log, Origin};
use crate::logger::Feed;
use crate::status::{Code, Failure};
use crate::stream::{Fifo, Sink};
use crate::sys;
use crate::uri::Destination;

/// What the path of a log in CRI format begins with.
pub(crate) const LOG_SCHEME: &str = "cri-log://";
const ATTACHED: &str = "attach:";
const ATTACHED_ONCE: &str = "attach:once";

/// The process' ends, and what the shim does at the other ones.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Keeps a stdin FIFO from ending until CloseIO.
    pub(crate) stdin_holder: Option<OwnedFd>,
    /// What attached clients type goes here, and whether it ends with the first of them.
    pub(crate) keyboard: Option<(OwnedFd, bool)>,
    /// Pipes to copy from.
    pub(crate) copies: Vec<(OwnedFd, Sink)>,
    /// Where a terminal's output goes.
    pub(crate) terminal: Option<Sink>,
    /// Who is to read the outputs.
    pub(crate) feed: Option<Feed>,
}

/// Opens a file that output is appended to, and makes the directories above it.
fn open_file(path: &Path) -> Result<Rc<File>, Failure> {
    let open = || {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        // A FIFO that nobody reads keeps nobody waiting.
        let flags = libc::O_NONBLOCK;
        OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags).open(path)
    };
    open().map(Rc::new).map_err(|error| {
        let failure = Failure::doing(&format!("opening {}", path.display()), &error);
        // Where it lies the caller says; that there is no space is not his fault.
        match failure.code {
            Code::Internal => Failure::new(Code::InvalidArgument, failure.message),
            _ => failure,
        }
    })
}

fn new_pipe(_: &str) -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::doing("making a pipe", &error))
}

/// Whether a stream is for attached clients.
pub(crate) fn is_attached(path: &str) -> bool {
    path == ATTACHED || path == ATTACHED_ONCE
}

/// Makes the container's user the owner of those streams that are pipes, so that he may open them once more as `/dev/stdout`
/// and the like. Ids are those outside of user namespaces.
pub(crate) fn give<'a>(
    streams: impl Iterator<Item = &'a OwnedFd>,
    uid: u32,
    gid: u32,
) -> Result<(), rustix::io::Errno> {
    for stream in streams {
        let found = fstat(stream)?;
        let is_pipe = FileType::from_raw_mode(found.st_mode) == FileType::Fifo;
        if is_pipe && (found.st_uid, found.st_gid) != (uid, gid) {
            fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    Ok(())
}

fn open_fifo(path: &str, flags: OFlags) -> Result<OwnedFd, Failure> {
    openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("opening {path}: {error}")))
}

/// Both ends of a stdin FIFO; the reading one blocks.
pub(crate) fn open_stdin(path: &str) -> Result<(OwnedFd, OwnedFd), Failure> {
    let reader = open_fifo(path, OFlags::RDONLY)?;
    let writer = open_fifo(path, OFlags::WRONLY)?;
    sys::set_nonblocking(reader.as_raw_fd(), false)
        .map_err(|error| Failure::doing("preparing stdin", &error))?;
    Ok((reader, writer))
}

/// A FIFO that a process writes to directly: it blocks as a pipe does, but never breaks.
pub(crate) fn open_direct(path: &str) -> Result<OwnedFd, Failure> {
    let fd = open_fifo(path, OFlags::RDWR)?;
    sys::set_nonblocking(fd.as_raw_fd(), false)
        .map_err(|error| Failure::doing("preparing an output", &error))?;
    Ok(fd)
}

/// A FIFO that the shim copies a terminal's output to.
pub(crate) fn open_terminal_sink(path: &str) -> Result<OwnedFd, Failure> {
    open_fifo(path, OFlags::RDWR)
}

impl Stdio {
    /// Opens everything for the container itself.
    pub(crate) fn open(terminal: bool, stdin: &str, stdout: &str, stderr: &str) -> Result<Self, Failure> {
        match Destination::parse(stdout)? {
            None => Self::open_with(terminal, stdin, stdout, stderr, new_pipe),
            Some(destination) => {
                let mut stdio = Self::open_with(terminal, stdin, "", "", new_pipe)?;
                stdio.send_to(destination, terminal, !stderr.is_empty())?;
                Ok(stdio)
            }
        }
    }

    /// Has both outputs go where a URI says.
    fn send_to(&mut self, destination: Destination, terminal: bool, stderr: bool) -> Result<(), Failure> {
        match destination {
            Destination::File(path) => {
                let file = open_file(&path)?;
                if terminal {
                    self.terminal = Some(Sink::File(file));
                    return Ok(());
                }
                for (wanted, slot) in [(true, &mut self.stdout), (stderr, &mut self.stderr)] {
                    if wanted {
                        let (reader, writer) = new_pipe("")?;
                        sys::set_nonblocking(reader.as_raw_fd(), true)
                            .map_err(|error| Failure::doing("preparing a pipe", &error))?;
                        self.copies.push((reader, Sink::File(Rc::clone(&file))));
                        *slot = Some(writer);
                    }
                }
            }
            Destination::Program(command) => {
                let ((stdout, out), (stderr, err)) = (new_pipe("")?, new_pipe("")?);
                if terminal {
                    sys::set_nonblocking(out.as_raw_fd(), true)
                        .map_err(|error| Failure::doing("preparing a pipe", &error))?;
                    self.terminal = Some(Sink::Fifo(Fifo::new(out)));
                } else {
                    (self.stdout, self.stderr) = (Some(out), Some(err));
                }
                self.feed = Some(Feed { command, stdout, stderr });
            }
        }
        Ok(())
    }

    /// The same with pipes made by `pipe`, which is told the stream's name and gives the reading and the writing end.
    pub(crate) fn open_with(
        terminal: bool,
        stdin: &str,
        stdout: &str,
        stderr: &str,
        mut pipe: impl FnMut(&str) -> Result<(OwnedFd, OwnedFd), Failure>,
    ) -> Result<Self, Failure> {
        let mut stdio = Self::default();
        if is_attached(stdin) {
            // A terminal is its own keyboard.
            if !terminal {
                let (reader, writer) = pipe("stdin")?;
                sys::set_nonblocking(writer.as_raw_fd(), true)
                    .map_err(|error| Failure::doing("preparing a pipe", &error))?;
                stdio.stdin = Some(reader);
                stdio.keyboard = Some((writer, stdin == ATTACHED_ONCE));
            }
        } else if !stdin.is_empty() {
            let (reader, writer) = open_stdin(stdin)?;
            stdio.stdin = Some(reader);
            stdio.stdin_holder = Some(writer);
        }
        let mut log: Option<(PathBuf, Rc<RefCell<Log>>)> = None;
        let mut sink = |path: &str, origin: Origin| -> Result<Option<Sink>, Failure> {
            if path.is_empty() {
                return Ok(None);
            }
            if path == ATTACHED {
                return Ok(Some(Sink::Quiet(origin)));
            }
            let Some(file) = path.strip_prefix(LOG_SCHEME) else {
                if path.contains("://") {
                    return Err(Failure::new(Code::InvalidArgument, format!("{path}: unknown scheme")));
                }
                return Ok(Some(Sink::Fifo(Fifo::new(open_fifo(path, OFlags::RDWR)?))));
            };
            let shared = match &log {
                Some((known, shared)) if known == Path::new(file) => Rc::clone(shared),
                _ => {
                    let opened = Log::open(PathBuf::from(file)).map_err(|error| {
                        let failure = Failure::doing(&format!("opening the log {file}"), &error);
                        // Where it lies the caller says; that there is no space is not his fault.
                        match failure.code {
                            Code::Internal => Failure::new(Code::InvalidArgument, failure.message),
                            _ => failure,
                        }
                    })?;
                    Rc::new(RefCell::new(opened))
                }
            };
            log = Some((PathBuf::from(file), Rc::clone(&shared)));
            Ok(Some(Sink::Log(shared, Lines::new(origin))))
        };
        if terminal {
            stdio.terminal = sink(stdout, Origin::Stdout)?;
            return Ok(stdio);
        }
        for (path, origin) in [(stdout, Origin::Stdout), (stderr, Origin::Stderr)] {
            let Some(sink) = sink(path, origin)? else { continue };
            let (reader, writer) = pipe(origin.name())?;
            sys::set_nonblocking(reader.as_raw_fd(), true)
                .map_err(|error| Failure::doing("preparing a pipe", &error))?;
            stdio.copies.push((reader, sink));
            match origin {
                Origin::Stdout => stdio.stdout = Some(writer),
                Origin::Stderr => stdio.stderr = Some(writer),
            }
        }
        Ok(stdio)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    use super::*;

    #[test]
    fn a_log_without_space_is_nobodys_mistake() {
        let test = || {
            // This thread's own.
            sys::unshare(libc::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let directory = tempfile::tempdir().unwrap();
            mount("small", directory.path(), "tmpfs", MountFlags::empty(), c"nr_inodes=1").unwrap();
            let open = |log: &Path| {
                Stdio::open(false, "", &format!("{LOG_SCHEME}{}", log.display()), "").unwrap_err()
            };
            let full = open(&directory.path().join("0.log"));
            assert_eq!(full.code, Code::ResourceExhausted, "{full}");
            let missing = open(&directory.path().join("none/0.log"));
            assert_eq!(missing.code, Code::InvalidArgument, "{missing}");
            rustix::mount::unmount(directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        };
        std::thread::spawn(test).join().unwrap();
    }
}
