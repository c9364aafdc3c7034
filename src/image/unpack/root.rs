//! A layer's directory, and how names are found in it: by the kernel, never outside.
//!
//! A symbolic link made by an earlier entry is followed on the way to a later one (`var/run -> /run`, then `var/run/x`) as it
//! will be in the container: the layer is the root, and nothing is above it (`RESOLVE_IN_ROOT`; containerd and Docker do so
//! too). What it leads to is made when it is missing. In a person's files such a link would mean another place than it does
//! where it is read: one that is absolute or leads out is refused there (`RESOLVE_BENEATH`).

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::EntryError;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Deepest nesting of a name.
const DEPTH_LIMIT: usize = 512;
/// Most bytes of names that are remembered for one layer.
const REMEMBERED_LIMIT: usize = 256 << 20;
/// Most symbolic links on the way to one name, as the kernel has it (path_resolution(7)).
const LINKS_LIMIT: u32 = 40;
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A name taken apart: the directory it is in, and its last component. The root itself has neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) parent: Vec<u8>,
    pub(crate) last: Vec<u8>,
}

impl Name {
    /// Whether this is the layer's root.
    pub(crate) fn is_root(&self) -> bool {
        self.last.is_empty()
    }

    /// The whole name, without `.` and doubled slashes.
    pub(crate) fn full(&self) -> Vec<u8> {
        join(&self.parent, &self.last)
    }

    /// Checks and cleans a name of an archive. It counts from the layer's root, also when it begins with a slash: kaniko
    /// writes the root as `/` and the targets of hard links so, and every other unpacker takes them. A `..` takes the part
    /// before it away, and never leads above the root.
    pub(crate) fn read(raw: &[u8]) -> Result<Self, EntryError> {
        if raw.len() >= 4096 || raw.contains(&0) {
            return Err(EntryError::Name);
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop().ok_or(EntryError::Parent)?;
                }
                part => parts.push(part),
            }
        }
        if parts.len() > DEPTH_LIMIT {
            return Err(EntryError::Name);
        }
        let last = parts.pop().unwrap_or_default().to_vec();
        Ok(Self { parent: parts.join(&b'/'), last })
    }
}

/// `directory/name`, where an empty one of both is left out.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => directory.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

/// The directory that a layer unpacks into.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    /// How links are followed.
    resolve: ResolveFlags,
    /// The directory of the last entry: archives come ordered by directory.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Directories that had to be made without an entry of their own.
    implicit: BTreeSet<Vec<u8>>,
    /// Bytes of names kept here and by the writer.
    remembered: usize,
}

impl Root {
    /// A layer's.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let directory = rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self::new(directory, WITHIN))
    }

    /// A directory of a person's files, open already.
    pub(crate) fn beneath(directory: OwnedFd) -> Self {
        Self::new(directory, BENEATH)
    }

    fn new(directory: OwnedFd, resolve: ResolveFlags) -> Self {
        Self { directory, resolve, last: None, implicit: BTreeSet::new(), remembered: 0 }
    }

    /// Directories made without an entry, ancestors first.
    pub(crate) fn implicit(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.implicit.iter()
    }

    /// Counts a name that is kept in memory until the layer is done.
    pub(crate) fn remember(&mut self, name: &[u8]) -> Result<(), EntryError> {
        self.remembered += name.len() + size_of::<Vec<u8>>();
        if self.remembered > REMEMBERED_LIMIT { Err(EntryError::Names(REMEMBERED_LIMIT)) } else { Ok(()) }
    }

    /// An entry of its own came for a directory.
    pub(crate) fn made_explicit(&mut self, path: &[u8]) {
        self.implicit.remove(path);
    }

    /// Something that may have been on a way was taken away or replaced.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Opens a directory below the root. The empty path is the root.
    pub(crate) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return self.directory.try_clone().map_err(|_| Errno::MFILE);
        }
        rustix::fs::openat2(&self.directory, path, DIRECTORY, Mode::empty(), self.resolve)
    }

    /// The directory that an entry goes to, made with its ancestors when it is missing.
    pub(crate) fn parent(&mut self, path: &[u8]) -> Result<&OwnedFd, EntryError> {
        if !matches!(&self.last, Some((known, _)) if known == path) {
            let directory = match self.open_directory(path) {
                Err(Errno::NOENT) => self.make(path)?,
                other => other.map_err(EntryError::system("opening its directory"))?,
            };
            self.last = Some((path.to_vec(), directory));
        }
        match &self.last {
            Some((_, directory)) => Ok(directory),
            None => Err(EntryError::Name),
        }
    }

    /// Makes what is missing of a way, following the links on it.
    fn make(&mut self, path: &[u8]) -> Result<OwnedFd, EntryError> {
        let opening = |error| EntryError::system("opening its directory")(error);
        let mut ahead: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        // Where the way has led to, without links.
        let mut real: Vec<u8> = Vec::new();
        let mut directory = self.open_directory(&real).map_err(opening)?;
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            let next = match part.as_slice() {
                b"" | b"." => continue,
                b".." => self.above(&real)?,
                part => match kind_of(directory.as_fd(), part).map_err(opening)? {
                    None => {
                        rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755))
                            .map_err(EntryError::system("making its directory"))?;
                        let made = join(&real, part);
                        self.remember(&made)?;
                        self.implicit.insert(made.clone());
                        made
                    }
                    Some((FileType::Symlink, _)) => {
                        links += 1;
                        if links > LINKS_LIMIT || ahead.len() > DEPTH_LIMIT {
                            return Err(opening(Errno::LOOP));
                        }
                        let target = rustix::fs::readlinkat(&directory, part, Vec::new()).map_err(opening)?;
                        let target = target.into_bytes();
                        for part in target.split(|b| *b == b'/').rev() {
                            ahead.push_front(part.to_vec());
                        }
                        match target.first() {
                            Some(b'/') => self.top()?,
                            _ => continue,
                        }
                    }
                    Some(_) => join(&real, part),
                },
            };
            directory = self.open_directory(&next).map_err(opening)?;
            real = next;
        }
        Ok(directory)
    }

    /// Where an absolute link begins.
    fn top(&self) -> Result<Vec<u8>, EntryError> {
        if self.resolve == BENEATH { Err(EntryError::Escapes) } else { Ok(Vec::new()) }
    }

    /// Where `..` leads to. Above the root is the root.
    fn above(&self, real: &[u8]) -> Result<Vec<u8>, EntryError> {
        match real.iter().rposition(|b| *b == b'/') {
            Some(slash) => Ok(real.get(..slash).unwrap_or_default().to_vec()),
            None if real.is_empty() => self.top(),
            None => Ok(Vec::new()),
        }
    }
}

/// What `name` in `directory` is, if anything: its type and device number.
pub(crate) fn kind_of(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<(FileType, u64)>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), stat.st_rdev))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        let name = |raw: &str| Name::read(raw.as_bytes());
        assert_eq!(name("./a//b/./c/").unwrap(), Name { parent: b"a/b".to_vec(), last: b"c".to_vec() });
        assert!(name("./").unwrap().is_root());
        assert!(name("/").unwrap().is_root());
        assert_eq!(name("/a/b").unwrap(), Name { parent: b"a".to_vec(), last: b"b".to_vec() });
        assert_eq!(name("a/../b").unwrap(), Name { parent: Vec::new(), last: b"b".to_vec() });
        for out in ["..", "/..", "../a", "/../a", "a/../../b"] {
            assert!(matches!(name(out), Err(EntryError::Parent)), "{out}");
        }
        assert!(matches!(name("a\0b"), Err(EntryError::Name)));
        assert!(matches!(name(&"a/".repeat(3000)), Err(EntryError::Name)));
        assert!(name("..a/b..").is_ok());
    }
}
