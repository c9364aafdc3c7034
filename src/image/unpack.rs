//! Turns a layer's bytes into a directory that overlayfs can stack.
//!
//! ```text
//! source (network and what is there already) ──> sha256, ingest file
//!        └─ gzip | zstd | plain ──> sha256 (diff id), bounds ──> tar ──> files below one directory
//! ```
//!
//! One pass, one thread for a layer. Nothing an archive says can reach outside its directory: names are taken apart
//! here, but it is the kernel that resolves them (`openat2` with `RESOLVE_BENEATH`), relative to the layer's own root.

mod archive;
mod copying;
mod entry;
mod field;
mod header;
mod implicit;
mod limits;
mod pax;
mod root;
mod sparse;
mod stream;
mod xattr;

use std::io;

pub(crate) use archive::Archive;
pub use copying::extract;
pub(crate) use header::{EntryKind, Header};
pub(crate) use implicit::inherit;
pub use limits::Limits;
pub(crate) use stream::{Unpacked, unpack};

/// Why a layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An entry does what no layer may do.
    #[error("entry {entry:?}")]
    Entry {
        /// The entry's name as the archive has it.
        entry: String,
        /// What is wrong with it.
        source: EntryError,
    },
    /// The bytes are no tar archive.
    #[error("the archive is broken: {0}")]
    Format(&'static str),
    /// A bound was reached.
    #[error(transparent)]
    Limit(#[from] limits::Exceeded),
    /// The bytes could not be read or decompressed.
    #[error("reading the layer")]
    Read(#[source] io::Error),
    /// The layer's own directory, or the file that keeps its content, could not be worked on.
    #[error("{what}")]
    Directory {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever fed the bytes is gone.
    #[error("the transfer was given up")]
    Aborted,
}

/// What is wrong with one entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its `..` components lead above the root.
    #[error("the name leads out of the layer with '..'")]
    Parent,
    /// It is longer than a path can be, or has a zero byte.
    #[error("the name is not one of a file")]
    Name,
    /// On the way is a symbolic link that leads out of the directory of a person's files.
    #[error("the way to it leads out of the directory through a symbolic link")]
    Escapes,
    /// The target of a hard link is outside.
    #[error("the hard link's target {target:?} is refused")]
    Target {
        /// The target.
        target: String,
        /// Why.
        source: Box<EntryError>,
    },
    /// The root of the layer itself can only be a directory.
    #[error("the root of the layer can only be a directory")]
    Root,
    /// Major or minor number are out of range.
    #[error("device {major}:{minor} is out of range")]
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A type that layers can't have.
    #[error("entry type {0:?} is not supported")]
    Kind(char),
    /// Its directory's names, which are remembered, are too many or too long.
    #[error("the names of the layer's directories take more than {0} bytes")]
    Names(usize),
    /// A sparse file whose map is wrong.
    #[error("the map of the sparse file is wrong")]
    Sparse,
    /// A copy takes nothing of another kind away.
    #[error("{0} of that name is there: remove it first, or copy to another place")]
    Occupied(&'static str),
    /// Copies hold files, directories, links and pipes.
    #[error("devices are not copied")]
    Special,
    /// A user or group that has no number here.
    #[error("its owner {uid}:{gid} has no number in the container's user namespace")]
    Owner {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The kernel refused.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl EntryError {
    fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> EntryError {
        move |errno| match errno {
            // RESOLVE_BENEATH says EXDEV for what leads out.
            rustix::io::Errno::XDEV => EntryError::Escapes,
            errno => EntryError::System { what, source: errno.into() },
        }
    }
}

impl From<io::Error> for Error {
    /// Readers below carry our own errors inside an [`io::Error`]; they come out as what they were.
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(own) => own,
            Err(error) => Error::Read(error),
        }
    }
}

/// A name from an archive, for people: lossy and bounded.
pub(crate) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..256).unwrap_or(name)).into_owned()
}
