//! Makes one entry of a layer below its root.
//!
//! Whiteouts become what overlayfs knows (OCI image-spec, layer.md, "Whiteouts"; kernel, filesystems/overlayfs.rst): a
//! removed name is a character device 0:0, an opaque directory an extended attribute. They speak of lower layers only:
//! what this layer brings itself stays, whichever comes first.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::root::{self, Name, Root};
use super::{EntryError, EntryKind, Header, xattr};
use crate::image::owners::Owners;
use crate::image::tree;

/// Data moves in pieces of this size.
const BUFFER: usize = 256 << 10;
/// What the file system takes at least for content.
const UNIT: u64 = 4096;

/// Writes entries below a root and counts what they take.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) root: Root,
    buffer: Vec<u8>,
    /// Directories get their times last: entries in them change them.
    times: Vec<(Vec<u8>, Timestamps)>,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files, directories and all others.
    pub(crate) inodes: u64,
    /// Whose files these are, when they are a person's and not a layer's.
    copying: Option<Copying>,
}

/// A person's files are copied.
#[derive(Debug)]
struct Copying {
    /// As the archive has them, called as here; `None`: whoever unpacks.
    owners: Option<Owners>,
}

impl Copying {
    /// Attributes and mode bits that change what a program may do go along with owners only.
    fn strip(&self, header: &mut Header) {
        if self.owners.is_none() {
            header.mode &= 0o1777;
            header.xattrs.retain(|(name, _)| name.starts_with(b"user."));
        }
    }
}

impl Writer {
    pub(crate) fn new(root: Root) -> Self {
        Self { root, buffer: vec![0; BUFFER], times: Vec::new(), bytes: UNIT, inodes: 1, copying: None }
    }

    /// One for a person's files ([`super::copying`]).
    pub(crate) fn copying(root: Root, owners: Option<Owners>) -> Self {
        Self { copying: Some(Copying { owners }), ..Self::new(root) }
    }

    /// Makes what `header` says, with data from `data`.
    pub(crate) fn apply(&mut self, header: &Header, data: &mut impl Read) -> Result<(), super::Error> {
        let named = |source| super::Error::Entry { entry: super::printable(&header.path), source };
        let name = Name::read(&header.path).map_err(named)?;
        let stripped = self.copying.as_ref().map(|copying| {
            let mut header = header.clone();
            copying.strip(&mut header);
            header
        });
        let header = stripped.as_ref().unwrap_or(header);
        if name.is_root() {
            return match header.kind {
                EntryKind::Directory if self.copying.is_some() => Ok(()),
                EntryKind::Directory => self.adopt_root(header).map_err(named),
                _ => Err(named(EntryError::Root)),
            };
        }
        if let Some(hidden) = name.last.strip_prefix(b".wh.").filter(|_| self.copying.is_none()) {
            return self.whiteout(&name, hidden).map_err(named);
        }
        match header.kind {
            EntryKind::File => self.file(&name, header, data),
            EntryKind::Directory => self.directory(&name, header).map_err(named),
            EntryKind::HardLink => self.hard_link(&name, header).map_err(named),
            EntryKind::Symlink => self
                .special(&name, header, "making the symbolic link", |parent, name| {
                    rustix::fs::symlinkat(header.link.as_slice(), parent, name)
                })
                .map_err(named),
            EntryKind::Character | EntryKind::Block if self.copying.is_some() => {
                Err(named(EntryError::Special))
            }
            EntryKind::Character | EntryKind::Block | EntryKind::Fifo => {
                self.device(&name, header).map_err(named)
            }
            EntryKind::Other(flag) => Err(named(EntryError::Kind(char::from(flag)))),
            _ => Err(named(EntryError::Kind('?'))),
        }
    }

    /// Sets the directories' times, the deepest first.
    pub(crate) fn finish(&mut self) -> Result<(), super::Error> {
        for (path, times) in self.times.drain(..).rev() {
            // Replaced by something else since: then the entry that did so gave it its times.
            if let Ok(directory) = self.root.open_directory(&path) {
                let _ = rustix::fs::futimens(&directory, &times);
            }
        }
        Ok(())
    }

    fn adopt_root(&mut self, header: &Header) -> Result<(), EntryError> {
        let root = self.root.open_directory(b"").map_err(EntryError::system("opening the layer's root"))?;
        adopt(root.as_fd(), header, self.owner(header)?)?;
        self.times.push((Vec::new(), times(header)));
        Ok(())
    }

    fn directory(&mut self, name: &Name, header: &Header) -> Result<(), EntryError> {
        let full = name.full();
        let owner = self.owner(header)?;
        let parent = self.root.parent(&name.parent)?;
        let mut replaced = false;
        let mut hidden = false;
        let made = match make_directory(parent, &name.last) {
            Err(Errno::EXIST) => match root::kind_of(parent.as_fd(), &name.last)
                .map_err(EntryError::system("looking at what is there"))?
            {
                Some((FileType::Directory, _)) if self.copying.is_some() => return Ok(()),
                Some((FileType::Directory, _)) => false,
                _ if self.copying.is_some() => return Err(EntryError::Occupied("something else")),
                there => {
                    hidden = there == Some((FileType::CharacterDevice, 0));
                    replaced = true;
                    tree::remove(parent.as_fd(), &name.last)
                        .map_err(EntryError::system("replacing what is there"))?;
                    make_directory(parent, &name.last).map_err(EntryError::system("making the directory"))?;
                    true
                }
            },
            other => other.map(|()| true).map_err(EntryError::system("making the directory"))?,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name.last.as_slice(), flags, Mode::empty())
            .map_err(EntryError::system("opening the directory"))?;
        adopt(directory.as_fd(), header, owner)?;
        if hidden {
            xattr::set_opaque(directory.as_fd())?;
        }
        if replaced {
            self.root.forget();
        }
        self.root.made_explicit(&full);
        self.root.remember(&full)?;
        self.times.push((full, times(header)));
        if made && !replaced {
            self.count(UNIT);
        }
        Ok(())
    }

    fn file(&mut self, name: &Name, header: &Header, data: &mut impl Read) -> Result<(), super::Error> {
        let named = |source| super::Error::Entry { entry: super::printable(&header.path), source };
        let owner = self.owner(header).map_err(named)?;
        let file = self.create(name).map_err(named)?;
        let mut file = std::fs::File::from(file);
        match &header.sparse {
            None => copy(&mut self.buffer, data, &mut file, header.size, &named)?,
            Some(map) => {
                use std::io::Seek as _;
                let system = |what| move |source| named(EntryError::System { what, source });
                for (offset, length) in &map.pieces {
                    file.seek(std::io::SeekFrom::Start(*offset)).map_err(system("seeking in the file"))?;
                    copy(&mut self.buffer, data, &mut file, *length, &named)?;
                }
                file.set_len(map.real_size).map_err(system("sizing the file"))?;
            }
        }
        adopt(file.as_fd(), header, owner).map_err(named)?;
        rustix::fs::futimens(&file, &times(header))
            .map_err(|e| named(EntryError::system("setting its times")(e)))?;
        self.count(header.size.div_ceil(UNIT) * UNIT);
        Ok(())
    }

    fn create(&mut self, name: &Name) -> Result<OwnedFd, EntryError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.root.parent(&name.parent)?;
        let open = || rustix::fs::openat(parent, name.last.as_slice(), flags, Mode::from_raw_mode(0o600));
        match open() {
            Err(Errno::EXIST) => {
                take_away(parent.as_fd(), &name.last, self.copying.is_some())?;
                let file = open().map_err(EntryError::system("making the file"))?;
                self.root.forget();
                Ok(file)
            }
            other => other.map_err(EntryError::system("making the file")),
        }
    }

    /// What is made by one call and never opened.
    fn special(
        &mut self,
        name: &Name,
        header: &Header,
        what: &'static str,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), EntryError> {
        let owner = self.owner(header)?;
        let parent = self.root.parent(&name.parent)?.as_fd();
        let mut replaced = false;
        match make(parent, &name.last) {
            Err(Errno::EXIST) => {
                replaced = true;
                take_away(parent, &name.last, self.copying.is_some())?;
                make(parent, &name.last).map_err(EntryError::system(what))?;
            }
            other => other.map_err(EntryError::system(what))?,
        }
        let last = name.last.as_slice();
        if let Some((uid, gid)) = owner {
            rustix::fs::chownat(parent, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(EntryError::system("setting its owner"))?;
        }
        xattr::set_at(parent, last, &header.xattrs)?;
        if header.kind != EntryKind::Symlink {
            // Just made by us in a directory nobody else sees: it is no link.
            rustix::fs::chmodat(parent, last, Mode::from_raw_mode(header.mode), AtFlags::empty())
                .map_err(EntryError::system("setting its mode"))?;
        }
        rustix::fs::utimensat(parent, last, &times(header), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(EntryError::system("setting its times"))?;
        if replaced {
            self.root.forget();
        }
        self.count(0);
        Ok(())
    }

    fn device(&mut self, name: &Name, header: &Header) -> Result<(), EntryError> {
        let kind = match header.kind {
            EntryKind::Character => FileType::CharacterDevice,
            EntryKind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        // The kernel's dev_t has 12 bits of major and 20 of minor.
        let (major, minor) = header.device;
        let numbers = u32::try_from(major)
            .ok()
            .filter(|m| *m < 1 << 12)
            .zip(u32::try_from(minor).ok().filter(|m| *m < 1 << 20));
        let (major, minor) = numbers.ok_or(EntryError::Device { major, minor })?;
        let device = rustix::fs::makedev(major, minor);
        self.special(name, header, "making the device", |parent, name| {
            rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
        })
    }

    fn hard_link(&mut self, name: &Name, header: &Header) -> Result<(), EntryError> {
        let refused =
            |source| EntryError::Target { target: super::printable(&header.link), source: Box::new(source) };
        let target = Name::read(&header.link).map_err(refused)?;
        if target.is_root() {
            return Err(refused(EntryError::Root));
        }
        let from = self
            .root
            .open_directory(&target.parent)
            .map_err(|error| refused(EntryError::system("opening its directory")(error)))?;
        if target == *name {
            return Ok(());
        }
        let parent = self.root.parent(&name.parent)?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is a further name of that link.
        let link = || {
            rustix::fs::linkat(&from, target.last.as_slice(), parent, name.last.as_slice(), AtFlags::empty())
        };
        match link() {
            Err(Errno::EXIST) => {
                take_away(parent.as_fd(), &name.last, self.copying.is_some())?;
                let linked = link().map_err(|error| refused(EntryError::system("linking to it")(error)));
                self.root.forget();
                linked
            }
            other => other.map_err(|error| refused(EntryError::system("linking to it")(error))),
        }
    }

    fn whiteout(&mut self, name: &Name, hidden: &[u8]) -> Result<(), EntryError> {
        let parent = self.root.parent(&name.parent)?;
        if hidden == b".wh..opq" {
            return xattr::set_opaque(parent.as_fd());
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // AUFS kept its own records under such names; they mean nothing here.
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::Name);
        }
        let made = rustix::fs::mknodat(
            parent,
            hidden,
            FileType::CharacterDevice,
            Mode::empty(),
            rustix::fs::makedev(0, 0),
        );
        match made {
            Ok(()) => {
                self.count(0);
                Ok(())
            }
            Err(Errno::EXIST) => {
                let there = root::kind_of(parent.as_fd(), hidden)
                    .map_err(EntryError::system("looking at what is there"))?;
                if matches!(there, Some((FileType::Directory, _))) {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let directory = rustix::fs::openat(parent, hidden, flags, Mode::empty())
                        .map_err(EntryError::system("opening the directory"))?;
                    xattr::set_opaque(directory.as_fd())?;
                }
                Ok(())
            }
            Err(error) => Err(EntryError::system("making the whiteout")(error)),
        }
    }

    /// Who is to own what `header` says; `None`: whoever makes it.
    fn owner(&self, header: &Header) -> Result<Option<(Uid, Gid)>, EntryError> {
        let (uid, gid) = match &self.copying {
            None => (header.uid, header.gid),
            Some(Copying { owners: None }) => return Ok(None),
            Some(Copying { owners: Some(owners) }) => owners
                .map(header.uid, header.gid)
                .ok_or(EntryError::Owner { uid: header.uid, gid: header.gid })?,
        };
        Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.inodes += 1;
    }
}

fn make_directory(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
}

/// Makes place for an entry. A person's directory does not go for a file.
fn take_away(parent: BorrowedFd<'_>, name: &[u8], copying: bool) -> Result<(), EntryError> {
    if copying {
        let there = root::kind_of(parent, name).map_err(EntryError::system("looking at what is there"))?;
        if matches!(there, Some((FileType::Directory, _))) {
            return Err(EntryError::Occupied("a directory"));
        }
    }
    tree::remove(parent, name).map_err(EntryError::system("replacing what is there"))
}

/// Owner first, then attributes (a change of owner drops capabilities), then mode (it drops setuid too).
fn adopt(file: BorrowedFd<'_>, header: &Header, owner: Option<(Uid, Gid)>) -> Result<(), EntryError> {
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(EntryError::system("setting its owner"))?;
    }
    xattr::set(file, &header.xattrs)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(header.mode)).map_err(EntryError::system("setting its mode"))
}

fn times(header: &Header) -> Timestamps {
    let (tv_sec, tv_nsec) = header.mtime;
    let time = Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: time, last_modification: time }
}

/// Moves exactly `size` bytes.
fn copy(
    buffer: &mut [u8],
    data: &mut impl Read,
    file: &mut std::fs::File,
    size: u64,
    named: &impl Fn(EntryError) -> super::Error,
) -> Result<(), super::Error> {
    use std::io::Write as _;
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..most).unwrap_or_default();
        let count = match data.read(piece) {
            Ok(0) => return Err(super::Error::Format("it ends within an entry")),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        file.write_all(piece.get(..count).unwrap_or_default())
            .map_err(|source| named(EntryError::System { what: "writing the file", source }))?;
        left -= count as u64;
    }
    Ok(())
}
