//! Numbers and times in the form that the Task service tells them.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A time, from nanoseconds since the Unix epoch.
pub(crate) fn time(nanoseconds: i64) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
        ..Default::default()
    })
}

/// A process's number or exit code. What is negative is none.
pub(crate) fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
