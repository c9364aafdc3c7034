//! Errors as the shim's clients see them: a ttrpc code and a message.

use std::io;

/// gRPC codes, as ttrpc uses them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The request makes no sense.
    InvalidArgument = 3,
    /// The time that the caller allows is over.
    DeadlineExceeded = 4,
    /// No such container or exec.
    NotFound = 5,
    /// There is one already.
    AlreadyExists = 6,
    /// No space, no inodes, no quota.
    ResourceExhausted = 8,
    /// Not in this state.
    FailedPrecondition = 9,
    /// Not built.
    Unimplemented = 12,
    /// Anything else.
    Internal = 13,
}

impl Code {
    pub(crate) fn from_byte(byte: u8) -> Self {
        [
            Self::InvalidArgument,
            Self::DeadlineExceeded,
            Self::NotFound,
            Self::AlreadyExists,
            Self::ResourceExhausted,
            Self::FailedPrecondition,
            Self::Unimplemented,
        ]
        .into_iter()
        .find(|code| *code as u8 == byte)
        .unwrap_or(Self::Internal)
    }
}

/// A refusal.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The words of another runtime, which has no codes. A command that the image lacks or that can't be executed, and a
    /// limit that the kernel refuses, are no fault of the runtime: runc, crun and youki say so in these words.
    pub(crate) fn said(message: impl Into<String>) -> Self {
        let message = message.into();
        let code = if ["exec: \"", "executable file", "error setting cgroup config", "chdir to cwd"]
            .iter()
            .any(|words| message.contains(words))
        {
            Code::FailedPrecondition
        } else if message.contains("does not exist") {
            Code::NotFound
        } else {
            Code::Internal
        };
        Self::new(code, message)
    }

    /// What was tried, and the error with all its causes.
    pub(crate) fn doing(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let full = std::iter::successors(Some(error), |&error| error.source())
            .filter_map(|error| error.downcast_ref::<io::Error>())
            .any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        let code = if full { Code::ResourceExhausted } else { Code::Internal };
        Self::new(code, format!("{what}: {}", chain(error)))
    }
}

/// An error and its causes, joined by colons; a cause that its parent repeats already is not said twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
