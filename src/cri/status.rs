//! From an error to a gRPC status: the only place that does it.

use tonic::{Code, Status};

use crate::error::{Classify, Kind, chain, exhausted};

/// The status of an error: its kind as code, its whole chain of sources as message. A full disk can show behind any work, and
/// is no fault of Berth.
pub fn of<E: Classify + 'static>(error: E) -> Status {
    let kind = match error.kind() {
        Kind::Internal if exhausted(&error) => Kind::ResourceExhausted,
        kind => kind,
    };
    Status::new(code(kind), chain(&error))
}

/// A call that is not built.
pub(crate) fn unimplemented(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not implemented"))
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
    #[derive(Debug, thiserror::Error)]
    #[error("writing /run/record")]
    struct Record(#[source] std::io::Error);

    impl Classify for Record {
        fn kind(&self) -> Kind {
            Kind::Internal
        }
    }

    #[test]
    fn a_full_disk_is_no_fault_of_ours() {
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(of(Record(full)).code(), Code::ResourceExhausted);
        let other = std::io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(of(Record(other)).code(), Code::Internal);
    }
}
