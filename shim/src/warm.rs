//! The process of the next exec, waiting in the container's cgroup.
//!
//! On cgroup v1 moving a process into a cgroup waits for an RCU grace period, 8 ms: most of what an exec takes. A container that had
//! one exec is likely to have more (probes), so after each a process is forked and moved, and waits there to be told what to run.
//! It is given up when nobody needs it for a minute, so that containers without execs, and those that had their last, have none.
//!
//! Over a socket pair the shim sends it one message: length, the fields of an `Execution`, and as descriptors the job's channel
//! and the standard streams. When the shim is gone, so is the other end, and the process ends.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::cgroup;
use crate::exec::{self, Execution};
use crate::job::Reporter;
use crate::sys::{self, Fork};

/// How long it waits: kubelets probe every ten seconds unless told otherwise.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A message of more is left to a process of its own.
const MESSAGE_MAX: usize = 64 << 10;
/// Channel and standard streams.
const FDS_MAX: usize = 4;

/// A waiting process.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) pid: i32,
    pub(crate) until: Instant,
    socket: OwnedFd,
}

/// Its directory, until the exec has one of its own name. No exec is called so.
fn directory(cgroups: &[PathBuf]) -> Option<PathBuf> {
    cgroup::for_killing(cgroups).map(|base| base.join("berth-next"))
}

impl Warm {
    /// Forks one. Only cgroup v1 needs it, and only there a directory can be renamed.
    pub(crate) fn spawn(bundle: &Path, cgroups: &[PathBuf]) -> Option<Self> {
        let directory = directory(cgroups).filter(|_| !cgroup::unified())?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).ok()?;
        match sys::fork().ok()? {
            Fork::Parent(pid) => Some(Self { pid, until: Instant::now() + IDLE_MAX, socket: ours }),
            Fork::Child => {
                sys::default_signals();
                std::mem::forget(ours);
                sys::close_others(&[theirs.as_raw_fd()]);
                let joined = exec::join_directory(cgroups, &directory);
                if let Ok((message, fds)) = receive(&theirs) {
                    run(&message, fds, bundle, cgroups, &directory, joined);
                }
                sys::exit_now(0)
            }
        }
    }

    /// Hands over what to run. `channel` is the job's; its other end then tells how it goes.
    pub(crate) fn send(&self, channel: &OwnedFd, execution: &Execution<'_>) -> io::Result<()> {
        let id = execution.exec_id.as_bytes();
        let mut message = vec![0; 4];
        let mut fds = vec![channel.as_raw_fd()];
        let mut streams = 0;
        for (index, fd) in execution.stdio.iter().enumerate() {
            if let Some(fd) = fd {
                streams |= 1 << index;
                fds.push(fd.as_raw_fd());
            }
        }
        message.extend([
            u8::from(execution.terminal),
            streams,
            u8::try_from(id.len()).map_err(io::Error::other)?,
        ]);
        message.extend(execution.init.to_le_bytes());
        message.extend(id);
        message.extend(execution.spec);
        if message.len() > MESSAGE_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let length = u32::try_from(message.len() - 4).unwrap_or_default();
        message.splice(..4, length.to_le_bytes());
        let sent = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&message)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        if sent == message.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) }
    }

    /// Ends it; the shim's loop reaps it.
    pub(crate) fn give_up(self) {
        let _ = sys::kill(self.pid, libc::SIGKILL);
    }
}

fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut message, mut fds) = (Vec::new(), Vec::new());
    loop {
        let mut bytes = [0_u8; 4096];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
        let received =
            recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(list) = control {
                fds.extend(list.into_iter().filter_map(|fd| sys::inherited(fd).ok()));
            }
        }
        let count = received.bytes;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        message.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if let Some((length, rest)) = message.split_first_chunk::<4>()
            && rest.len() >= usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX)
        {
            return Ok((rest.to_vec(), fds));
        }
    }
}

fn run(
    message: &[u8],
    fds: Vec<OwnedFd>,
    bundle: &Path,
    cgroups: &[PathBuf],
    directory: &Path,
    joined: io::Result<()>,
) {
    let mut fds = fds.into_iter();
    let Some(reporter) = fds.next().map(Reporter::on) else { return };
    let Some(([terminal, streams, id_length, a, b, c, d], rest)) = message.split_first_chunk::<7>() else {
        return;
    };
    let Some((id, spec)) = rest.split_at_checked(usize::from(*id_length)) else { return };
    let Ok(exec_id) = std::str::from_utf8(id) else { return };
    let mut stdio = [None, None, None];
    for (index, slot) in stdio.iter_mut().enumerate() {
        if streams & (1 << index) != 0 {
            *slot = fds.next();
        }
    }
    let execution = Execution {
        exec_id,
        init: i32::from_le_bytes([*a, *b, *c, *d]),
        bundle,
        cgroups,
        spec,
        terminal: *terminal != 0,
        stdio,
    };
    let named = joined.and_then(|()| match exec::own_directory(cgroups, exec_id) {
        Some(own) => fs::rename(directory, own),
        None => Ok(()),
    });
    exec::run_joined(execution, named, &reporter);
}
