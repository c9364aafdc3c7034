//! The room's error.

use super::digest::Digest;
use super::{Platform, manifest, pack, reference, registry, store, transfer, unpack};
use crate::error::{Classify, Kind, exhausted};

/// Why something about images failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A document of the image.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The image is not made for this machine.
    #[error("the image has no manifest for {platform}, only for {there}")]
    Platform {
        /// What was looked for.
        platform: Platform,
        /// What is there.
        there: String,
    },
    /// A layer that can't be unpacked.
    #[error("unpacking layer {layer}")]
    Layer {
        /// The layer's content.
        layer: Digest,
        /// Why.
        source: unpack::Error,
    },
    /// A layer whose bytes are not what the manifest says.
    #[error("layer {layer} has {what} {got}, not {expected}")]
    Mismatch {
        /// The layer's content.
        layer: Digest,
        /// What differs.
        what: &'static str,
        /// What came.
        got: String,
        /// What should have.
        expected: String,
    },
    /// A layer that is larger than may be downloaded.
    #[error("layer {layer} has {size} bytes, more than {limit}")]
    LayerSize {
        /// The layer's content.
        layer: Digest,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An archive being imported or exported.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// The image is not here.
    #[error("image {0} is not here")]
    NotFound(String),
    /// Content that a push needs.
    #[error(
        "{what} {digest} of {reference} is not kept here, and {host} does not have it either: pull the image again \
         (with `images.discard_unpacked_layers = false`), then push it"
    )]
    NotKept {
        /// Layer or configuration.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// Of what.
        reference: String,
        /// Where it was looked for as well.
        host: String,
    },
    /// A name that can't be given to an image.
    #[error("{reference} can't be {doing}: {problem}")]
    Name {
        /// The name.
        reference: String,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        problem: &'static str,
    },
    /// The last name of an image can't be taken off.
    #[error("{0} is the image's only tag: remove the image instead")]
    LastTag(String),
    /// An instruction that changes an image's configuration.
    #[error("the change {text:?}: {problem}")]
    Change {
        /// The instruction.
        text: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A directory that can't be packed.
    #[error("packing the writable layer")]
    Pack(#[from] pack::Error),
    /// Layers were removed while nobody held them.
    #[error("layers of image {0} were removed")]
    LayersGone(String),
    /// The work was given up.
    #[error("the work was given up")]
    Cancelled,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Reference(_) | Error::Name { .. } | Error::Change { .. } => Kind::InvalidArgument,
            Error::Pack(error) => error.kind(),
            Error::NotKept { .. } | Error::LastTag(_) => Kind::FailedPrecondition,
            Error::Registry(error) => error.kind(),
            Error::Platform { .. } | Error::NotFound(_) | Error::LayersGone(_) => Kind::NotFound,
            Error::Layer { source, .. } if exhausted(source) => Kind::ResourceExhausted,
            Error::Layer { source: unpack::Error::Directory { .. }, .. } | Error::Store(_) => Kind::Internal,
            Error::Layer { source: unpack::Error::Limit(_), .. } | Error::LayerSize { .. } => {
                Kind::ResourceExhausted
            }
            Error::Layer { source: unpack::Error::Aborted, .. } | Error::Cancelled => Kind::Cancelled,
            // What the image is made of: pulling the same again can't help.
            Error::Manifest(_) | Error::Layer { .. } | Error::Mismatch { .. } => Kind::InvalidArgument,
            Error::Transfer(error) => error.kind(),
        }
    }
}

/// An error with its causes in one line, for the log.
#[derive(Debug)]
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

/// Runs what blocks beside the workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // A panic in it is ours to show, not to hide.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Cancelled),
        },
    }
}
