//! What can go wrong between daemon and shim.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Classify, Kind};

/// A call to a shim, or starting one, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim's program could not be started.
    #[error("starting the shim {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the bundle could not be made or read.
    #[error("{action} {path}")]
    Bundle {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers on the shim's socket: it ended.
    #[error("the shim of container {id} is not there")]
    Gone {
        /// The container.
        id: String,
        /// What connecting to it said.
        source: io::Error,
    },
    /// The connection broke while a call was under way.
    #[error("the shim of container {id} went away during {call}: {reason}")]
    Lost {
        /// The container.
        id: String,
        /// The call.
        call: &'static str,
        /// What the transport said.
        reason: String,
    },
    /// The shim did not answer in time.
    #[error("the shim of container {id} did not answer {call} within {}s", .limit.as_secs())]
    TimedOut {
        /// The container.
        id: String,
        /// The call.
        call: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// The shim refused the call. The text is the shim's own and names the thing.
    #[error("{message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// ttrpc status code (the gRPC numbers).
        code: i32,
        /// The shim's words.
        message: String,
    },
}

/// `NOT_FOUND` of gRPC.
const NOT_FOUND: i32 = 5;

impl Error {
    /// Whether the shim, or the thing asked for, is not there any more: the work of a tear-down is then done.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Lost { .. } => true,
            Self::Refused { code, .. } => *code == NOT_FOUND,
            _ => false,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Spawn { .. } | Self::Bundle { .. } => Kind::Internal,
            Self::Gone { .. } | Self::Lost { .. } => Kind::Unavailable,
            Self::TimedOut { .. } => Kind::DeadlineExceeded,
            Self::Refused { code, .. } => match *code {
                3 => Kind::InvalidArgument,
                4 => Kind::DeadlineExceeded,
                NOT_FOUND => Kind::NotFound,
                6 => Kind::AlreadyExists,
                8 => Kind::ResourceExhausted,
                9 => Kind::FailedPrecondition,
                12 => Kind::Unimplemented,
                _ => Kind::Internal,
            },
        }
    }
}
