//! A directory as a tar archive, while others may be changing it.
//!
//! The directory belongs to a container: names may turn into links between two looks at them. So nothing is reached by a
//! path: every name is opened in its own directory without following links, what it is is asked of what was opened, and
//! only regular files are opened for reading, by way of that first descriptor. Devices and pipes are described, never opened.
//!
//! Of a writable layer, overlayfs' marks become those of image layers (OCI image-spec, layer.md, "Whiteouts"): a character
//! device 0/0 is `.wh.NAME`, an opaque directory has `.wh..wh..opq`. A file that shrinks while it is read is filled with zeros, one
//! that grows is cut: the archive stays whole.

mod error;
mod format;
mod node;

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::owners::Owners;
use super::unpack::Limits;
use node::{Node, Xattrs, is_virtual};

pub use error::Error;

/// Directories below one another: each takes a descriptor while it is open.
const DEEPEST: usize = 512;
/// Files are read in pieces of this size.
const BUFFER: usize = 128 << 10;
/// What to pack, and how much at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    /// Turn overlayfs' marks into those of layers.
    pub(crate) overlay: bool,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Says that the work is to end.
    pub(crate) stop: &'a AtomicBool,
    /// How owners are called in the archive; `None`: as here. Whoever has no number there is nobody.
    pub(crate) owners: Option<&'a Owners>,
}

/// Whom the kernel shows for those who have no number (Documentation/admin-guide/sysctl/fs.rst, "overflowuid").
const NOBODY: u32 = 65534;

/// Writes what is in `directory` (not the directory itself) as a tar archive with its end.
pub(crate) fn directory<W: Write>(directory: OwnedFd, writer: W, bounds: Bounds<'_>) -> Result<W, Error> {
    let mut packer = Packer { writer, bounds, links: HashMap::new(), entries: 0, bytes: 0, hidden: None };
    packer.children(&directory, &mut Vec::new(), 0)?;
    packer.end()
}

/// Writes what `thing` is (a path descriptor), with all below it, as `name`: `.` is what is in a directory. Of the kernel's own file
/// systems below it only the directories they are mounted on go along.
pub(crate) fn one<W: Write>(thing: OwnedFd, name: &[u8], writer: W, bounds: Bounds<'_>) -> Result<W, Error> {
    let stat = fs::fstat(&thing).map_err(|error| failed("looking at", name)(error.into()))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let node = Node { fd: thing, stat, kind };
    let mut packer = Packer { writer, bounds, links: HashMap::new(), entries: 1, bytes: 0, hidden: None };
    packer.node(&node, &mut name.to_vec(), &CString::default(), 0)?;
    packer.end()
}

/// The same for files of one's own, with owners as they are here.
///
/// # Errors
/// The first thing that can't be read, or the archive's other end.
pub fn send<W: Write>(
    thing: OwnedFd,
    name: &[u8],
    writer: W,
    limits: &Limits,
    stop: &AtomicBool,
) -> Result<W, Error> {
    let (entries, bytes) = (limits.layer_entries, limits.layer_bytes);
    one(thing, name, writer, Bounds { overlay: false, entries, bytes, stop, owners: None })
}

/// What a writable layer hides of those below it: names relative to its root.
#[derive(Debug, Default)]
pub(crate) struct Hidden {
    /// Files and directories that are gone.
    pub(crate) deleted: Vec<Vec<u8>>,
    /// Directories of which only what the layer itself has is there.
    pub(crate) opaque: Vec<Vec<u8>>,
}

/// The same of a writable layer, without marks: what they say is the second answer.
pub(crate) fn changes<W: Write>(
    directory: OwnedFd,
    writer: W,
    bounds: Bounds<'_>,
) -> Result<(W, Hidden), Error> {
    let hidden = Some(Hidden::default());
    let bounds = Bounds { overlay: true, ..bounds };
    let mut packer = Packer { writer, bounds, links: HashMap::new(), entries: 0, bytes: 0, hidden };
    packer.children(&directory, &mut Vec::new(), 0)?;
    let hidden = packer.hidden.take().unwrap_or_default();
    Ok((packer.end()?, hidden))
}

struct Packer<'a, W> {
    writer: W,
    bounds: Bounds<'a>,
    /// Files of several names by device and inode: the first name has the content.
    links: HashMap<(u64, u64), Vec<u8>>,
    entries: u64,
    bytes: u64,
    /// Takes what would be marks.
    hidden: Option<Hidden>,
}

impl<W: Write> Packer<'_, W> {
    fn children(&mut self, directory: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
        if depth >= DEEPEST {
            return Err(Error::TooMuch { what: "directories below one another", limit: DEEPEST as u64 });
        }
        for name in self.names(directory, path)? {
            if self.bounds.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            match Node::open(directory.as_fd(), &name) {
                // It went away since.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("opening", path)(error.into())),
                Ok(node) => self.node(&node, path, &name, depth)?,
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn names(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<CString>, Error> {
        let fail = |error: Errno| failed("reading", path)(error.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                self.entries += 1;
                if self.entries > self.bounds.entries {
                    return Err(Error::TooMuch { what: "files", limit: self.bounds.entries });
                }
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn node(&mut self, node: &Node, path: &mut Vec<u8>, name: &CString, depth: usize) -> Result<(), Error> {
        if self.bounds.overlay && node.kind == FileType::CharacterDevice && node.stat.st_rdev == 0 {
            if let Some(hidden) = &mut self.hidden {
                hidden.deleted.push(path.clone());
                return Ok(());
            }
            let at = path.len() - name.as_bytes().len();
            let mut mark = path.get(..at).unwrap_or_default().to_vec();
            mark.extend_from_slice(b".wh.");
            mark.extend_from_slice(name.as_bytes());
            return self.empty(&mark);
        }
        match node.kind {
            FileType::Directory => {
                let opened = node.reopen(OFlags::RDONLY | OFlags::DIRECTORY);
                let opened = opened.map_err(|error| failed("opening", path)(error.into()))?;
                self.marks(node, path)?;
                let mut entry = path.clone();
                entry.push(b'/');
                self.header(node, tar::EntryType::Directory, &entry, &[], 0)?;
                if self.bounds.overlay && self.is_opaque(node, path)? {
                    match &mut self.hidden {
                        Some(hidden) => hidden.opaque.push(path.clone()),
                        None => self.empty(&[path.as_slice(), b"/.wh..wh..opq"].concat())?,
                    }
                }
                if depth > 0 && !self.bounds.overlay && is_virtual(&opened) {
                    return Ok(());
                }
                self.children(&opened, path, depth + 1)
            }
            FileType::RegularFile => self.file(node, path),
            FileType::Symlink => {
                let target = fs::readlinkat(&node.fd, "", Vec::new())
                    .map_err(|error| failed("reading the link", path)(error.into()))?;
                self.header(node, tar::EntryType::Symlink, path, target.as_bytes(), 0)
            }
            FileType::CharacterDevice => self.special(node, tar::EntryType::Char, path),
            FileType::BlockDevice => self.special(node, tar::EntryType::Block, path),
            FileType::Fifo => self.special(node, tar::EntryType::Fifo, path),
            // A socket is nothing without the program behind it; archives have no word for it.
            _ => Ok(()),
        }
    }

    fn file(&mut self, node: &Node, path: &[u8]) -> Result<(), Error> {
        if self.link(node, path)? {
            return Ok(());
        }
        self.marks(node, path)?;
        let opened = node.reopen(OFlags::RDONLY | OFlags::NOCTTY);
        let mut file = File::from(opened.map_err(|error| failed("opening", path)(error.into()))?);
        let size = u64::try_from(node.stat.st_size).unwrap_or_default();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bounds.bytes {
            return Err(Error::TooMuch { what: "bytes", limit: self.bounds.bytes });
        }
        self.header(node, tar::EntryType::Regular, path, &[], size)?;
        let mut buffer = vec![0; BUFFER];
        let mut left = size;
        while left > 0 {
            if self.bounds.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let read = file.read(buffer.get_mut(..most).unwrap_or_default());
            let count = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(failed("reading", path))?,
            };
            if count == 0 {
                break;
            }
            self.writer.write_all(buffer.get(..count).unwrap_or_default()).map_err(Error::Write)?;
            left -= count as u64;
        }
        if left > 0 {
            io::copy(&mut io::repeat(0).take(left), &mut self.writer).map_err(Error::Write)?;
        }
        self.pad(size)
    }

    fn special(&mut self, node: &Node, kind: tar::EntryType, path: &[u8]) -> Result<(), Error> {
        if self.link(node, path)? {
            return Ok(());
        }
        self.header(node, kind, path, &[], 0)
    }

    /// Writes one more name of what was packed already. `false`: this is its first.
    fn link(&mut self, node: &Node, path: &[u8]) -> Result<bool, Error> {
        if node.stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (node.stat.st_dev, node.stat.st_ino);
        match self.links.get(&key).cloned() {
            Some(first) => self.header(node, tar::EntryType::Link, path, &first, 0).map(|()| true),
            None => {
                self.links.insert(key, path.to_vec());
                Ok(false)
            }
        }
    }

    fn is_opaque(&self, node: &Node, path: &[u8]) -> Result<bool, Error> {
        let value = node
            .xattr(b"trusted.overlay.opaque")
            .map_err(|error| failed("reading the attributes of", path)(error.into()))?;
        Ok(value.is_some_and(|value| value == b"y"))
    }

    /// Refuses what only the mounted overlay can read. Berth's own overlays make none of these, unless the kernel is built to.
    fn marks(&self, node: &Node, path: &[u8]) -> Result<(), Error> {
        if !self.bounds.overlay {
            return Ok(());
        }
        for mark in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
            let found = node.xattr(mark.as_bytes());
            if found.map_err(|error| failed("reading the attributes of", path)(error.into()))?.is_some() {
                return Err(Error::Reference { path: shown(path), mark });
            }
        }
        Ok(())
    }

    /// A mark of a layer.
    fn empty(&mut self, path: &[u8]) -> Result<(), Error> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.write(header, path, &[], Vec::new(), 0)
    }

    fn header(
        &mut self,
        node: &Node,
        kind: tar::EntryType,
        path: &[u8],
        link: &[u8],
        size: u64,
    ) -> Result<(), Error> {
        let xattrs = match kind {
            tar::EntryType::Link => Vec::new(),
            _ => {
                let found = node.xattrs();
                found.map_err(|error| failed("reading the attributes of", path)(error.into()))?
            }
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(node.stat.st_mode & 0o7777);
        let (uid, gid) = match self.bounds.owners {
            Some(owners) => owners.map(node.stat.st_uid, node.stat.st_gid).unwrap_or((NOBODY, NOBODY)),
            None => (node.stat.st_uid, node.stat.st_gid),
        };
        header.set_uid(u64::from(uid));
        header.set_gid(u64::from(gid));
        header.set_mtime(u64::try_from(node.stat.st_mtime).unwrap_or_default());
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            let (major, minor) = (fs::major(node.stat.st_rdev), fs::minor(node.stat.st_rdev));
            header.set_device_major(major).map_err(Error::Write)?;
            header.set_device_minor(minor).map_err(Error::Write)?;
        }
        self.write(header, path, link, xattrs, size)
    }

    /// Writes a header, before it what does not fit into one.
    fn write(
        &mut self,
        header: tar::Header,
        path: &[u8],
        link: &[u8],
        xattrs: Xattrs,
        size: u64,
    ) -> Result<(), Error> {
        self.writer.write_all(&format::header(header, path, link, xattrs, size)).map_err(Error::Write)
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        self.writer.write_all(format::padding(size)).map_err(Error::Write)
    }

    /// Two blocks of zeros end an archive.
    fn end(mut self) -> Result<W, Error> {
        self.writer.write_all(&[0; 1024]).map_err(Error::Write)?;
        Ok(self.writer)
    }
}

fn failed(what: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = shown(path);
    move |source| Error::File { what, path, source }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Opens a directory as the root of what is to be packed.
pub(crate) fn open(path: &std::path::Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(|source| Error::File {
        what: "opening",
        path: path.display().to_string(),
        source: source.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    fn packed(root: &std::path::Path, overlay: bool) -> Result<Vec<u8>, Error> {
        let stop = AtomicBool::new(false);
        let bounds = Bounds { overlay, entries: 1000, bytes: 1 << 20, stop: &stop, owners: None };
        directory(open(root).unwrap(), Vec::new(), bounds)
    }

    /// Kind, mode, link and content.
    type Entry = (tar::EntryType, u32, String, Vec<u8>);

    fn listed(archive: &[u8]) -> BTreeMap<String, Entry> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let link =
                entry.link_name_bytes().map_or(String::new(), |link| String::from_utf8_lossy(&link).into());
            let (kind, mode) = (entry.header().entry_type(), entry.header().mode().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (path, (kind, mode, link, content))
        });
        entries.collect()
    }

    #[test]
    fn a_layer_has_marks_where_an_overlay_has_its_own() {
        let root = tempfile::Builder::new().prefix("berth-pack").tempdir_in("/run").unwrap();
        let at = |name: &str| root.path().join(name);
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
        std::fs::create_dir_all(at(&"d".repeat(120))).unwrap();
        std::fs::write(at(&long), b"long").unwrap();
        std::fs::create_dir(at("opaque")).unwrap();
        fs::setxattr(at("opaque"), "trusted.overlay.opaque", b"y", fs::XattrFlags::empty()).unwrap();
        fs::mknodat(fs::CWD, at("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        std::fs::write(at("one"), b"1").unwrap();
        std::fs::hard_link(at("one"), at("two")).unwrap();
        fs::setxattr(at("one"), "trusted.mine", b"v", fs::XattrFlags::empty()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        fs::mknodat(fs::CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let archive = packed(root.path(), true).unwrap();
        let found = listed(&archive);
        assert_eq!(found[&long].3, b"long");
        assert!(found.contains_key(".wh.gone") && !found.contains_key("gone"));
        assert!(found.contains_key("opaque/.wh..wh..opq"));
        assert_eq!((found["two"].0, found["two"].2.as_str()), (tar::EntryType::Link, "one"));
        assert_eq!((found["link"].0, found["link"].2.as_str()), (tar::EntryType::Symlink, "/etc/passwd"));
        assert_eq!(found["pipe"].0, tar::EntryType::Fifo);
        let text = String::from_utf8_lossy(&archive).into_owned();
        assert!(text.contains("SCHILY.xattr.trusted.mine=v") && !text.contains("overlay.opaque"));
    }

    #[test]
    fn bounds_hold_and_references_are_refused() {
        let root = tempfile::Builder::new().prefix("berth-pack").tempdir_in("/run").unwrap();
        std::fs::write(root.path().join("large"), vec![0; 2 << 20]).unwrap();
        assert!(matches!(packed(root.path(), true), Err(Error::TooMuch { what: "bytes", .. })));
        std::fs::remove_file(root.path().join("large")).unwrap();
        let moved = root.path().join("moved");
        std::fs::create_dir(&moved).unwrap();
        fs::setxattr(&moved, "trusted.overlay.redirect", b"/x", fs::XattrFlags::empty()).unwrap();
        assert!(matches!(packed(root.path(), true), Err(Error::Reference { .. })));
        assert!(packed(root.path(), false).is_ok());
    }
}
