//! criu as a program of ours: `criu swrk`, spoken to over a socket pair until it has done one thing.
//!
//! It is executed because its work can't be linked in: criu changes its own process while it works, and is GPL. Without a deadline
//! of its own it may hang; whoever waits kills it. The kernel lets the tracees of a killed criu go, so none stays stopped; but one that
//! has criu's code in it at that moment ends by it. So criu is killed at once only while it holds nobody.

pub(crate) mod request;
pub(crate) mod wire;

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair,
};

use crate::status::{Code, Failure};
use crate::sys;

use wire::{Answer, Kind, Options};

/// Longest message: notices and answers are short.
const MESSAGE_MAX: usize = 64 << 10;
/// Lines of criu's log that a failure repeats, and how much of the log's end is searched for them.
const LINES_MAX: usize = 4;
const TAIL_MAX: u64 = 1 << 20;
/// How long criu has to let its tracees go after the time is over, before it is killed: with its code in them they would not
/// survive that.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// A running criu.
#[derive(Debug)]
pub(crate) struct Criu {
    child: Child,
    socket: OwnedFd,
    deadline: Option<Instant>,
    limit: Option<Duration>,
    log: PathBuf,
}

/// Something that criu tells of while it works. It waits for the end of the call.
pub(crate) struct Notice<'a> {
    pub(crate) script: &'a str,
    /// A descriptor that came with it.
    pub(crate) fd: Option<OwnedFd>,
}

impl Criu {
    /// Starts it. `log` is where it writes what it does, `limit` how long it may take. `keep` it finds open by their numbers.
    pub(crate) fn start(
        program: &Path,
        log: PathBuf,
        limit: Option<Duration>,
        keep: &[RawFd],
    ) -> Result<Self, Failure> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|error| Failure::doing("making a socket pair", &error))?;
        for fd in keep.iter().copied().chain([theirs.as_raw_fd()]) {
            sys::keep_on_exec(fd).map_err(|error| Failure::doing("preparing a descriptor", &error))?;
        }
        let mut command = Command::new(program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| {
            let message = format!("running criu ({}): {error}: install the package criu", program.display());
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    Failure::new(Code::FailedPrecondition, message)
                }
                _ => Failure::internal(message),
            }
        })?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        Ok(Self { child, socket: ours, deadline, limit, log })
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// Has it do one thing; `noted` hears what it tells of meanwhile. `traced` is a process that it stops for that.
    pub(crate) fn run(
        mut self,
        kind: Kind,
        options: &Options,
        traced: Option<i32>,
        mut noted: impl FnMut(Notice<'_>) -> Result<(), Failure>,
    ) -> Result<Answer, Failure> {
        let result = self.talk(kind, options, traced, &mut noted);
        if result.is_err() {
            let _ = self.child.kill();
        }
        drop(self.socket);
        let ended = self.child.wait();
        let failed = |message: String, code: Code| {
            let said = last_errors(&self.log);
            let log = self.log.display();
            Failure::new(code, if said.is_empty() { message } else { format!("{message}: {said} ({log})") })
        };
        match result {
            Ok(answer) if answer.success => Ok(answer),
            Ok(_) => Err(failed("criu could not do it".to_owned(), Code::FailedPrecondition)),
            Err(Broken::Failure(failure)) => Err(failure),
            Err(Broken::Ended) => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(failed(format!("criu ended before it was done ({how})"), Code::Internal))
            }
            Err(Broken::Late) => {
                let limit = self.limit.unwrap_or_default().as_secs_f64();
                Err(failed(format!("criu was not done within {limit}s"), Code::DeadlineExceeded))
            }
        }
    }

    fn talk(
        &mut self,
        kind: Kind,
        options: &Options,
        traced: Option<i32>,
        noted: &mut dyn FnMut(Notice<'_>) -> Result<(), Failure>,
    ) -> Result<Answer, Broken> {
        let encoding = |error| Broken::Failure(Failure::doing("encoding a message to criu", &error));
        self.send(&wire::request(kind, options).map_err(encoding)?)?;
        loop {
            let (bytes, fd) = self.receive(traced)?;
            let answer = wire::answer(&bytes)
                .map_err(|error| Broken::Failure(Failure::doing("reading what criu says", &error)))?;
            if answer.kind != Kind::Notify as i32 || !answer.success {
                return Ok(answer);
            }
            let result = noted(Notice { script: &answer.script, fd });
            self.send(&wire::noted(result.is_ok()).map_err(encoding)?)?;
            if let Err(failure) = result {
                // It puts everything back before it says that it failed.
                let _ = self.receive(traced);
                return Err(Broken::Failure(failure));
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Broken> {
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(_) => Err(Broken::Ended),
        }
    }

    fn receive(&self, traced: Option<i32>) -> Result<(Vec<u8>, Option<OwnedFd>), Broken> {
        self.wait(traced)?;
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let (count, fds) = match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(message) => {
                let fds: Vec<RawFd> = message
                    .cmsgs()
                    .into_iter()
                    .flatten()
                    .filter_map(|control| match control {
                        ControlMessageOwned::ScmRights(fds) => Some(fds),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                (message.bytes, fds)
            }
            Err(_) => (0, Vec::new()),
        };
        let mut fds = fds.into_iter().filter_map(|fd| sys::inherited(fd).ok()).collect::<Vec<_>>();
        if count == 0 {
            return Err(Broken::Ended);
        }
        bytes.truncate(count);
        Ok((bytes, (!fds.is_empty()).then(|| fds.remove(0))))
    }

    /// Waits until there is something to read. When the time is over, those whom criu has stopped get a little longer.
    fn wait(&self, traced: Option<i32>) -> Result<(), Broken> {
        let mut deadline = self.deadline;
        loop {
            let rest = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = rest.map(|rest| i32::try_from(rest.as_millis() + 1).unwrap_or(i32::MAX));
            let mut fds = [libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            let ready = sys::poll(&mut fds, timeout)
                .map_err(|error| Broken::Failure(Failure::doing("waiting for criu", &error)))?;
            if ready > 0 {
                return Ok(());
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                let held = traced.is_some_and(|pid| tracer(pid) == Some(self.pid()));
                if !held || deadline != self.deadline {
                    return Err(Broken::Late);
                }
                deadline = deadline.map(|at| at + LAST_WORDS);
            }
        }
    }
}

/// Why there is no answer.
enum Broken {
    Ended,
    Late,
    Failure(Failure),
}

/// Who traces a process.
fn tracer(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid != 0)
}

/// What says nothing of the reason: criu goes on without what it would like to have, and sums up at the end.
const NOISE: [&str; 4] = ["rlimit: ", "Dumping FAILED", "Restoring FAILED", "Dump files (pid: "];

/// The last lines of criu's log that say `Error`, in one line and without their times.
pub(crate) fn last_errors(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
        file.take(TAIL_MAX).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text
        .lines()
        .rev()
        .filter_map(|line| Some(line.split_once("Error ")?.1.trim()))
        .filter(|line| !NOISE.iter().any(|noise| line.contains(noise)))
        .take(LINES_MAX)
        .collect();
    lines.reverse();
    lines.join("; ")
}

/// Where a program of that name is in PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_errors_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("dump.log");
        let text = "(00.1) Error (criu/a.c:1): first\n(00.2) fine\n(00.3) Error (criu/b.c:2): second\n\
                    (00.4) Error (criu/cr-dump.c:3): Dumping FAILED.\n";
        std::fs::write(&log, text).unwrap();
        assert_eq!(last_errors(&log), "(criu/a.c:1): first; (criu/b.c:2): second");
        assert_eq!(last_errors(&directory.path().join("none")), "");
    }

    #[test]
    fn a_program_that_says_nothing_is_ended_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("criu");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let criu = Criu::start(&program, directory.path().join("log"), Some(Duration::from_millis(50)), &[])
            .unwrap();
        let pid = criu.pid();
        let failure = criu.run(Kind::Dump, &Options::default(), None, |_| Ok(())).unwrap_err();
        assert_eq!(failure.code, Code::DeadlineExceeded, "{failure}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is gone");
    }

    #[test]
    fn a_program_that_is_missing_names_the_package() {
        let failure = Criu::start(Path::new("/none/criu"), PathBuf::new(), None, &[]).unwrap_err();
        assert_eq!(failure.code, Code::FailedPrecondition);
        assert!(failure.message.contains("install the package criu"), "{failure}");
    }
}
