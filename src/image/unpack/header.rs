//! One 512-byte header of a tar archive (POSIX ustar with the extensions of GNU).

use super::Error;
use super::field::{BLOCK, field, number, text, unsigned};

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file, sparse ones too.
    File,
    /// A further name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Describes the next entry (PAX).
    Pax,
    /// Describes all entries that follow (PAX).
    PaxGlobal,
    /// The next entry's name (GNU).
    LongName,
    /// The next entry's link target (GNU).
    LongLink,
    /// A sparse file in GNU's old form.
    GnuSparse,
    /// Anything else.
    Other(u8),
}

/// An entry with everything that its extensions say of it.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) kind: EntryKind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Bytes of data in the archive.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data goes, when not in one piece.
    pub(crate) sparse: Option<super::sparse::Map>,
}

impl Header {
    /// Reads a header block; `None` for a block of zeros.
    pub(crate) fn read(block: &[u8; BLOCK]) -> Result<Option<Self>, Error> {
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: i64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(*byte) })
            .sum();
        if number(field(block, 148, 8))? != sum {
            return Err(Error::Format("a header's checksum is wrong"));
        }
        let mut path = text(field(block, 0, 100)).to_vec();
        // POSIX ustar carries more of the name in front; GNU uses those bytes otherwise.
        if field(block, 257, 6) == b"ustar\0" {
            let prefix = text(field(block, 345, 155));
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        let mut kind = kind(field(block, 156, 1).first().copied().unwrap_or_default());
        if kind == EntryKind::File && path.ends_with(b"/") {
            kind = EntryKind::Directory;
        }
        let id = |at| {
            u32::try_from(number(field(block, at, 8))?).map_err(|_| Error::Format("an owner out of range"))
        };
        Ok(Some(Self {
            kind,
            path,
            link: text(field(block, 157, 100)).to_vec(),
            size: unsigned(field(block, 124, 12))?,
            mode: u32::try_from(number(field(block, 100, 8))? & 0o7777).unwrap_or(0),
            uid: id(108)?,
            gid: id(116)?,
            mtime: (number(field(block, 136, 12))?, 0),
            device: match kind {
                EntryKind::Character | EntryKind::Block => {
                    (unsigned(field(block, 329, 8))?, unsigned(field(block, 337, 8))?)
                }
                _ => (0, 0),
            },
            xattrs: Vec::new(),
            sparse: None,
        }))
    }
}

fn kind(flag: u8) -> EntryKind {
    match flag {
        b'0' | 0 | b'7' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Character,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'x' | b'X' => EntryKind::Pax,
        b'g' => EntryKind::PaxGlobal,
        b'L' => EntryKind::LongName,
        b'K' => EntryKind::LongLink,
        b'S' => EntryKind::GnuSparse,
        other => EntryKind::Other(other),
    }
}
