//! The unix socket: mode 0660, group by configuration, and a stale one is taken over only when nobody listens on it.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::Error;

/// The listening socket. Removes its file when dropped, unless another has taken the place.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens on the path.
    pub(crate) fn listen(path: &Path, gid: u32) -> Result<(Self, UnixListener), Error> {
        Self::dressed(path, 0o660, Some(gid))
    }

    /// The same, for root alone; so is the directory, if it is made.
    pub(crate) fn listen_privately(path: &Path) -> Result<(Self, UnixListener), Error> {
        if let Some(directory) = path.parent() {
            super::make_directory(directory, 0o700)?;
        }
        Self::dressed(path, 0o600, None)
    }

    fn dressed(path: &Path, mode: u32, gid: Option<u32>) -> Result<(Self, UnixListener), Error> {
        let error = |source| Error::Io { doing: "listening on", path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(error)?;
        }
        clear(path)?;
        // Owner and mode are set before the name appears, so that nobody connects in between.
        let hidden = path.with_file_name(format!(".{}", std::process::id()));
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden).map_err(error)?;
        let made = dress(&hidden, mode, gid).and_then(|()| {
            std::fs::rename(&hidden, path)?;
            std::fs::symlink_metadata(path)
        });
        match made {
            Ok(metadata) => Ok((Self { path: path.to_owned(), inode: metadata.ino() }, listener)),
            Err(source) => {
                let _ = std::fs::remove_file(&hidden);
                Err(error(source))
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn dress(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    chown(path, None, gid)
}

/// Makes sure that the name is free: nothing is there, or a socket that nobody listens on.
pub(crate) fn clear(path: &Path) -> Result<(), Error> {
    let error = |source| Error::Io { doing: "looking at", path: path.to_owned(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(error(other)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(refused) if matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Ok(())
        }
        Ok(_) => Err(Error::SocketInUse { path: path.to_owned() }),
        Err(other) => Err(error(other)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn stale_sockets_are_taken_over_and_live_ones_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        // A listener that ended without removing its name.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (socket, listener) = Socket::listen(&path, 0).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let message = Socket::listen(&path, 0).unwrap_err().to_string();
        assert!(message.contains("somebody listens on"), "{message}");
        drop(listener);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(Socket::listen(&path, 0), Err(Error::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn a_socket_of_somebody_else_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("berth.sock");
        let (socket, _listener) = Socket::listen(&path, 0).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
