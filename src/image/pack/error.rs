//! What can go wrong with packing.

use std::io;

use crate::error::Kind;

/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of its files.
    #[error("{what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what, below the directory.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The archive's other end.
    #[error("writing the archive")]
    Write(#[source] io::Error),
    /// More than the bounds of a layer allow.
    #[error("there are more than {limit} {what}")]
    TooMuch {
        /// Files, bytes or levels.
        what: &'static str,
        /// How many may be.
        limit: u64,
    },
    /// Only readable through the mounted overlay.
    #[error("{path:?} is kept as a reference to a layer below ({mark}), which can't be packed")]
    Reference {
        /// The file.
        path: String,
        /// The attribute that says so.
        mark: &'static str,
    },
    /// Nobody waits any more.
    #[error("the work was given up")]
    Stopped,
}

impl Error {
    /// Whether it was the archive's other end that failed.
    pub fn is_cut_off(&self) -> bool {
        matches!(self, Error::Write(_))
    }

    /// The kind of failure.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Error::TooMuch { .. } => Kind::ResourceExhausted,
            Error::Reference { .. } => Kind::FailedPrecondition,
            Error::Stopped => Kind::Cancelled,
            Error::File { .. } | Error::Write(_) => Kind::Internal,
        }
    }
}
