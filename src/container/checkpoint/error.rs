//! What can go wrong with checkpoints.

use std::io;
use std::path::{Path, PathBuf};

use crate::container::criu;
use crate::error::{Classify, Kind};
use crate::{image, shim};

/// A checkpoint could not be made, or a container not be made from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody to do it.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// The archive can't be there.
    #[error("location {path:?}: {problem}")]
    Location {
        /// As the request has it.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is something of that name.
    #[error("location {0} exists already: checkpoints overwrite nothing")]
    Exists(PathBuf),
    /// The image that the container came from.
    #[error("image {0} is not on this node any more")]
    NoImage(String),
    /// The shim, or criu by way of it.
    #[error("checkpointing the container")]
    Shim(#[from] shim::Error),
    /// It would not know how.
    #[error("runtime handler {name:?} restores no checkpoints ({why}): the built-in one does")]
    Handler {
        /// Its name.
        name: String,
        /// What its program says of that.
        why: String,
    },
    /// criu can't restore into one.
    #[error("containers of pods with a user namespace can't be restored")]
    UserNamespace,
    /// A path that names nothing.
    #[error("there is no checkpoint archive {0}")]
    NoArchive(PathBuf),
    /// It is no checkpoint, or not whole.
    #[error("the checkpoint can't be used: {what}")]
    Broken {
        /// What is wrong.
        what: String,
    },
    /// The archive, or one in it, can't be unpacked.
    #[error("unpacking the checkpoint")]
    Archive(#[source] image::unpack::Error),
    /// What the container was made from.
    #[error("the checkpoint was taken over image {0:?}, which is not on this node: pull it first")]
    NoBase(String),
    /// The image's layers.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The files that the container changed.
    #[error("packing the checkpoint")]
    Pack(#[from] image::pack::Error),
    /// A file could not be used.
    #[error("{action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A worker thread was stopped.
    #[error("the checkpoint was cut off by the daemon's shutdown")]
    Interrupted,
}

impl Error {
    /// What was tried on a path.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { action, path, source }
    }
}

/// A disk that is full is no fault of Berth's.
fn of_system(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Kind::ResourceExhausted
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Kind::FailedPrecondition,
        _ => Kind::Internal,
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Criu(error) => error.kind(),
            Self::NoImage(_) | Self::NoBase(_) | Self::Handler { .. } | Self::UserNamespace => {
                Kind::FailedPrecondition
            }
            Self::Location { .. } | Self::Broken { .. } => Kind::InvalidArgument,
            Self::NoArchive(_) => Kind::NotFound,
            Self::Archive(image::unpack::Error::Read(_) | image::unpack::Error::Directory { .. }) => {
                Kind::Internal
            }
            Self::Archive(_) => Kind::InvalidArgument,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::Shim(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Pack(image::pack::Error::Write(source)) | Self::Path { source, .. } => of_system(source),
            Self::Pack(error) => error.kind(),
            Self::Interrupted => Kind::Cancelled,
        }
    }
}
