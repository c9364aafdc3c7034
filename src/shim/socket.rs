//! The unix socket in a bundle directory.
//!
//! A socket's address holds at most 107 bytes, which a long state directory and a container id exceed together. The
//! directory is therefore opened first and the socket is named through `/proc/self/fd`, which is always short.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket's name in the bundle.
pub(super) const NAME: &str = "shim.sock";

fn short(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()))
}

/// Listens on the bundle's socket.
pub(super) fn listen(bundle: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(short(&File::open(bundle)?))
}

/// Connects to the shim that listens on the bundle's socket.
pub(super) fn connect(bundle: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(short(&File::open(bundle)?))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_long_path_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("x".repeat(200));
        std::fs::create_dir(&bundle).unwrap();
        assert!(connect(&bundle).is_err());
        let _listener = listen(&bundle).unwrap();
        connect(&bundle).unwrap();
    }
}
