//! The host's root directory, and paths inside it: found by the kernel, which takes the directory for `/` on the way
//! (`RESOLVE_IN_ROOT`), so that the host's own links work and none leads out. The last component is never followed.

mod stage;

use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// Longest path, as the kernel has it.
const PATH_LIMIT: usize = 4096;

/// An absolute path on the host without `.`, `..` and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPath(String);

impl HostPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its directory; of `/name` that is `/`.
    pub fn parent(&self) -> &str {
        match self.0.rfind('/') {
            Some(0) | None => "/",
            Some(at) => &self.0[..at],
        }
    }

    /// Its last component.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is below a directory.
    pub fn is_below(&self, directory: &str) -> bool {
        self.0.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HostPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        let wrong = |why| Err(Error::Path(path.chars().take(200).collect(), why));
        let Some(rest) = path.strip_prefix('/') else { return wrong("not absolute") };
        if path.len() >= PATH_LIMIT {
            return wrong("too long");
        }
        if path.chars().any(char::is_control) {
            return wrong("a control character in it");
        }
        if rest.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > 200) {
            return wrong("an empty, long, . or .. part in it");
        }
        Ok(Self(path))
    }
}

impl TryFrom<&str> for HostPath {
    type Error = Error;

    fn try_from(path: &str) -> Result<Self, Error> {
        Self::try_from(path.to_owned())
    }
}

impl From<HostPath> for String {
    fn from(path: HostPath) -> Self {
        path.0
    }
}

/// A regular file's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Of its content, in hexadecimal.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed, in seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    File(FileFacts),
    /// A symbolic link, and where it points to.
    Link(String),
    /// A directory.
    Directory,
    /// A device, socket or fifo.
    Other,
}

impl Found {
    /// What it is, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::File(_) => "a file",
            Self::Link(_) => "a link",
            Self::Directory => "a directory",
            Self::Other => "a device, socket or fifo",
        }
    }
}

/// The host's root.
#[derive(Debug)]
pub struct HostRoot {
    directory: OwnedFd,
    path: PathBuf,
    locked: bool,
}

impl Drop for HostRoot {
    fn drop(&mut self) {
        if self.locked {
            // Closing would do, if no child that is just being started shared the descriptor.
            let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
        }
    }
}

impl HostRoot {
    /// Opens it, and takes the lock that one installation at a time holds.
    ///
    /// # Errors
    /// When it is no directory, or another run holds the lock.
    pub fn lock(path: &Path) -> Result<Self, Error> {
        let mut root = Self::open(path)?;
        match rustix::fs::flock(&root.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                root.locked = true;
                Ok(root)
            }
            Err(Errno::WOULDBLOCK) => Err(Error::Busy(path.to_owned())),
            Err(error) => Err(Error::Root { path: path.to_owned(), source: error.into() }),
        }
    }

    /// Opens it to look only.
    ///
    /// # Errors
    /// When it is no directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|error| Error::Root { path: path.to_owned(), source: error.into() })?;
        Ok(Self { directory, path: path.to_owned(), locked: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory. Links on the way count from the root.
    fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let inner = match path.trim_start_matches('/') {
            "" => ".",
            inner => inner,
        };
        rustix::fs::openat2(&self.directory, inner, DIRECTORY, Mode::empty(), INSIDE)
    }

    fn parent(&self, path: &HostPath) -> Result<OwnedFd, Error> {
        self.directory(path.parent()).map_err(failed("opening the directory of", path))
    }

    /// What is there; `None` when nothing is, not even the directory.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn look(&self, path: &HostPath) -> Result<Option<Found>, Error> {
        let parent = match self.directory(path.parent()) {
            Ok(parent) => parent,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed("opening the directory of", path)(error)),
        };
        look_at(&parent, path.name()).map_err(failed("reading", path))
    }

    /// Whether a path is a directory, through links.
    pub fn is_directory(&self, path: &str) -> bool {
        self.directory(path).is_ok()
    }

    /// The content of a file, through links inside the root; `None` when it is not there.
    ///
    /// # Errors
    /// When it can't be read, is no regular file, or has more than `limit` bytes.
    pub fn read(&self, path: &HostPath, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let inner = path.as_str().trim_start_matches('/');
        let file = match rustix::fs::openat2(&self.directory, inner, flags, Mode::empty(), INSIDE) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed("opening", path)(error)),
        };
        let host = |source| Error::Host { doing: "reading", path: path.clone(), source };
        if !file.metadata().map_err(host)?.is_file() {
            return Err(host(io::Error::other("not a regular file")));
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).map_err(host)?;
        if content.len() as u64 > limit {
            return Err(Error::Large { path: path.clone(), limit });
        }
        Ok(Some(content))
    }

    /// The names in a directory, sorted; none when it is not there.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn names(&self, path: &HostPath) -> Result<Vec<String>, Error> {
        let directory = match self.directory(path.as_str()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(failed("opening", path)(error)),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(failed("reading", path))? {
            let entry = entry.map_err(failed("reading", path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Bytes free for root, and all bytes, of the file system that holds the nearest directory above a path.
    ///
    /// # Errors
    /// When no file system says so.
    pub fn space(&self, path: &HostPath) -> Result<(u64, u64), Error> {
        let stat = self.filesystem(path)?;
        Ok((stat.f_bfree.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    /// Free and total inodes of the file system that a path is on; (0, 0) where it has no such bound.
    ///
    /// # Errors
    /// As [`HostRoot::space`].
    pub fn inodes(&self, path: &HostPath) -> Result<(u64, u64), Error> {
        let stat = self.filesystem(path)?;
        Ok((stat.f_ffree, stat.f_files))
    }

    fn filesystem(&self, path: &HostPath) -> Result<rustix::fs::StatVfs, Error> {
        let mut at = path.as_str();
        let directory = loop {
            match self.directory(at) {
                Ok(directory) => break directory,
                Err(Errno::NOENT) if !at.is_empty() => at = at.rfind('/').map_or("", |slash| &at[..slash]),
                Err(error) => return Err(failed("opening", path)(error)),
            }
        };
        rustix::fs::fstatvfs(&directory).map_err(failed("asking for the space of", path))
    }
}

fn failed(doing: &'static str, path: &HostPath) -> impl FnOnce(Errno) -> Error {
    let path = path.clone();
    move |error| Error::Host { doing, path, source: error.into() }
}

fn look_at(parent: &OwnedFd, name: &str) -> Result<Option<Found>, Errno> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let mut hash = Sha256::new();
            io::copy(&mut std::fs::File::from(file), &mut hash)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Found::File(FileFacts {
                sha256: hex::encode(hash.finalize()),
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            })
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            Found::Link(target.to_string_lossy().into_owned())
        }
        FileType::Directory => Found::Directory,
        _ => Found::Other,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        let path = HostPath::try_from("/etc/berth/conf.d").unwrap();
        assert_eq!((path.parent(), path.name()), ("/etc/berth", "conf.d"));
        assert!(path.is_below("/etc/berth") && !path.is_below("/etc/ber"));
        assert_eq!(HostPath::try_from("/opt").unwrap().parent(), "/");
        for wrong in ["", "/", "etc", "/a/../b", "/a//b", "/a/.", "/a\nb", "/a/"] {
            assert!(HostPath::try_from(wrong).is_err(), "{wrong:?}");
        }
        assert!(HostPath::try_from(format!("/{}", "a/".repeat(3000) + "b")).is_err());
    }

    #[test]
    fn links_count_from_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::write(root.join("usr/lib/x"), "in").unwrap();
        std::fs::write(dir.path().join("x"), "out").unwrap();
        std::os::unix::fs::symlink("/usr/lib", root.join("lib")).unwrap();
        std::os::unix::fs::symlink("../../../..", root.join("up")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("x"), root.join("usr/out")).unwrap();
        let root = HostRoot::open(&root).unwrap();
        let read = |path: &str| root.read(&HostPath::try_from(path).unwrap(), 10);
        assert_eq!(read("/lib/x").unwrap().unwrap(), b"in");
        assert_eq!(read("/up/usr/lib/x").unwrap().unwrap(), b"in", "above the root is the root");
        assert_eq!(read("/usr/out").unwrap(), None, "an absolute link counts from the root");
        assert!(matches!(root.read(&HostPath::try_from("/lib/x").unwrap(), 1), Err(Error::Large { .. })));
    }
}
