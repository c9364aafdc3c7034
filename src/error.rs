//! What every room's error has in common: a [`Kind`], by which the faces choose a gRPC code, and a chain of sources,
//! which [`chain`] writes in one line.
//!
//! Each module keeps a `thiserror` enum of its own and implements [`Classify`] for it; nothing here knows gRPC.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

/// What went wrong, as a caller has to react to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it is: a field is missing, malformed or contradicts another.
    InvalidArgument,
    /// The thing the request names is not there.
    NotFound,
    /// A different thing of that name is there already.
    AlreadyExists,
    /// The thing is there, but not in a state that allows the request.
    FailedPrecondition,
    /// A bound is reached: address pool, disk, concurrency, size limits.
    ResourceExhausted,
    /// A peer (registry, shim, etcd) can't be reached now; trying again may help.
    Unavailable,
    /// The time allowed is over.
    DeadlineExceeded,
    /// A peer or the kernel refuses us.
    PermissionDenied,
    /// A peer wants credentials, or other ones.
    Unauthenticated,
    /// Berth, the runtime or the kernel lacks the feature.
    Unimplemented,
    /// The caller went away, or the daemon stops.
    Cancelled,
    /// All else: a fault of Berth or of the machine.
    Internal,
}

/// An error that knows its [`Kind`].
pub trait Classify: Error {
    /// What a caller should make of it. Wrapping errors pass on the kind of their source where that says more.
    fn kind(&self) -> Kind;
}

impl Classify for berth_cni::Error {
    fn kind(&self) -> Kind {
        match berth_cni::Error::kind(self) {
            berth_cni::Kind::InvalidArgument => Kind::InvalidArgument,
            berth_cni::Kind::NotFound => Kind::NotFound,
            berth_cni::Kind::AlreadyExists => Kind::AlreadyExists,
            berth_cni::Kind::FailedPrecondition => Kind::FailedPrecondition,
            berth_cni::Kind::ResourceExhausted => Kind::ResourceExhausted,
            berth_cni::Kind::Unavailable => Kind::Unavailable,
            berth_cni::Kind::DeadlineExceeded => Kind::DeadlineExceeded,
            berth_cni::Kind::Internal => Kind::Internal,
        }
    }
}

/// Whether the system had no more of something: space or inodes (ENOSPC), quota, open files.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE))
}

/// The same of whatever is behind an error.
pub fn exhausted(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(is_exhausted))
}

/// The error with its whole chain of sources, joined by `": "`. A source whose text the error before it already ends
/// with is not repeated, so that both ways of writing `thiserror` messages read well.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let part = next.to_string();
        if !part.is_empty() && !text.ends_with(&part) {
            let _ = write!(text, ": {part}");
        }
        source = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("mounting /a")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("opening /b: {0}")]
    struct Middle(#[source] std::io::Error);

    #[test]
    fn chain_names_each_cause_once() {
        let error = Outer(Middle(std::io::Error::other("disk gone")));
        assert_eq!(chain(&error), "mounting /a: opening /b: disk gone");
    }
}
