//! Terminals: receiving the master side over a console socket, and making one for an exec.

use std::io;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::status::Failure;
use crate::sys;

/// Waits for the master side that the container's first process sends.
pub(crate) fn receive(listener: &UnixListener) -> Result<OwnedFd, Failure> {
    let take = || -> io::Result<OwnedFd> {
        let (stream, _) = listener.accept()?;
        let mut bytes = [0_u8; 64];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(fd) = fds.first()
            {
                return sys::inherited(*fd);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"))
    };
    take().map_err(|error| Failure::doing("receiving the terminal", &error))
}
