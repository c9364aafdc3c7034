//! Images as archives: OCI layouts and what `docker save` writes, in and out as streams.
//!
//! An archive that comes in may be either, packed or not. One that goes out is both: an OCI layout that also has the
//! `manifest.json` that `docker load` looks for.

mod collect;
mod export;
mod import;

use serde::{Deserialize, Serialize};

use crate::error::Kind;

/// Small files move through a buffer of this size.
pub(super) const BUFFER: usize = 256 << 10;

/// An entry of Docker's `manifest.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Why an archive can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive holds no image.
    #[error("the archive is neither an OCI layout nor written by docker save: {0}")]
    NoImage(&'static str),
    /// The archive is broken.
    #[error("the archive")]
    Archive(#[from] super::unpack::Error),
    /// Content in it is not what its name says.
    #[error("{0:?} in the archive is damaged")]
    Damaged(String),
    /// It holds more than is reasonable.
    #[error("the archive has more than {0} entries")]
    TooMany(usize),
    /// Something the archive names is not in it.
    #[error("the archive lacks {0:?}")]
    Missing(String),
    /// A document in it.
    #[error("{name:?} in the archive is not readable")]
    Json {
        /// Which.
        name: String,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// The stream broke.
    #[error("{what} the archive")]
    Io {
        /// Reading or writing.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// The kind of failure.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Error::Io { .. } => Kind::Internal,
            _ => Kind::InvalidArgument,
        }
    }
}
