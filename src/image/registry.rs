//! The client side of registries (OCI distribution-spec).
//!
//! A [`Session`] is one pull's or push's view of a repository: its hosts in the order they are to be tried (mirrors first), its
//! credentials, and the tokens obtained with them, which end with the session. Host files are read for each session, so a change
//! needs no restart.

mod auth;
mod challenge;
mod client;
mod content;
mod credentials;
mod endpoint;
mod hosts;
mod pace;
mod refusal;
mod retrying;
mod tls;
mod token;
mod transfer;
mod upload;

use std::time::Duration;

use super::digest::Digest;
use crate::error::Kind;

pub(crate) use client::{Purpose, Registry, Resolved, Session};
pub(crate) use content::Source;
pub use credentials::Credentials;
pub(crate) use transfer::{Ended, Sink};
pub(crate) use upload::{Given, Outgoing};

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 401, also after credentials were offered.
    #[error("{host} wants other credentials for {what} (401 Unauthorized){detail}")]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        detail: String,
    },
    /// 403.
    #[error("{host} does not allow access to {what} (403 Forbidden){detail}")]
    Denied {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        detail: String,
    },
    /// 404.
    #[error("{host} does not have {what} (404 Not Found){detail}")]
    NotFound {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        detail: String,
    },
    /// 429, for longer than is waited for.
    #[error("{host} answers too many requests for {what} (429 Too Many Requests){detail}")]
    RateLimited {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        detail: String,
    },
    /// Another status that was not expected.
    #[error("{host} answers {status} for {what}{detail}")]
    Status {
        /// The registry's host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What it said.
        detail: String,
    },
    /// It could not be spoken to.
    #[error("asking {host} for {what}")]
    Transport {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing, or next to nothing, came for too long.
    #[error("{host} made no progress with {what} for {} s", .after.as_secs_f32())]
    Stalled {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// The content ended early, again and again.
    #[error("{host} sent {got} of {size} bytes of {what}")]
    Truncated {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come.
        size: u64,
    },
    /// There is more than there should be.
    #[error("{host} sent more than {limit} bytes of {what}")]
    TooLong {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// Bytes that should have come.
        limit: u64,
    },
    /// The content is not what its digest says.
    #[error("{what} from {host} has digest {got}, not {expected}")]
    Digest {
        /// The registry's host.
        host: String,
        /// What was asked for.
        what: String,
        /// What it should be.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The token server did not give a token.
    #[error("the token server {host} {problem}")]
    Token {
        /// The token server.
        host: String,
        /// What it did.
        problem: String,
        /// Whether other credentials may help.
        refused: bool,
    },
    /// An address that can't be used.
    #[error("{host} points to {target:?}, which is not followed: {problem}")]
    Redirect {
        /// The registry's host.
        host: String,
        /// Where it points to.
        target: String,
        /// Why not.
        problem: &'static str,
    },
    /// A host file that is wrong.
    #[error("{path}: {problem}")]
    HostsFile {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The credentials are not readable.
    #[error("the credentials: {0}")]
    Credentials(&'static str),
    /// A registry does not keep to the protocol.
    #[error("{host} {problem}, asked to take {what}")]
    Protocol {
        /// The registry's host.
        host: String,
        /// What was sent.
        what: String,
        /// What it did.
        problem: &'static str,
    },
    /// No host may be asked.
    #[error("no host is configured that can {0}")]
    NoHost(&'static str),
}

impl Error {
    /// The kind of failure.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Error::Unauthorized { .. } => Kind::Unauthenticated,
            Error::Denied { .. } => Kind::PermissionDenied,
            Error::NotFound { .. } => Kind::NotFound,
            Error::Token { refused: true, .. } => Kind::Unauthenticated,
            Error::Stalled { .. } => Kind::DeadlineExceeded,
            Error::Credentials(_) => Kind::InvalidArgument,
            Error::HostsFile { .. } | Error::NoHost(_) => Kind::FailedPrecondition,
            Error::RateLimited { .. }
            | Error::Status { .. }
            | Error::Transport { .. }
            | Error::Truncated { .. }
            | Error::TooLong { .. }
            | Error::Digest { .. }
            | Error::Redirect { .. }
            | Error::Protocol { .. }
            | Error::Token { .. } => Kind::Unavailable,
        }
    }
}
