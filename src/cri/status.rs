//! From an error to a gRPC status: the only place that does it.

use tonic::{Code, Status};

use crate::error::{Classify, Kind, chain};

/// The status of an error: its kind as code, its whole chain of sources as message.
pub fn of<E: Classify>(error: E) -> Status {
    Status::new(code(error.kind()), chain(&error))
}

/// A call that is not built.
pub(crate) fn unimplemented(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not implemented"))
}

/// There is no such thing. `what` says what kind of thing.
pub(crate) fn not_found(what: &str, id: &str) -> Status {
    Status::not_found(format!("{what} {id:?} not found"))
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Cancelled => Code::Cancelled,
        Kind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("joining network bridge")]
    struct Outer(#[source] std::io::Error);

    impl Classify for Outer {
        fn kind(&self) -> Kind {
            Kind::ResourceExhausted
        }
    }

    #[test]
    fn keeps_kind_and_causes() {
        let status = of(Outer(std::io::Error::other("pool 10.0.0.0/30 is full")));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "joining network bridge: pool 10.0.0.0/30 is full");
    }
}
