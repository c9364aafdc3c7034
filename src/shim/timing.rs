//! What a shim says of how long the parts of a call took, as spans below that of the call.
//!
//! Shims send no spans themselves. Who traces a creation or a start asks for the figures when it is over, beside everything else:
//! nothing waits for them, and without an answer there are no spans.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::wrappers::StringValue;
use serde::Deserialize;

use crate::telemetry::Place;

/// Calls whose parts shims time.
const TIMED: [&str; 2] = ["Create", "Start"];
/// Most parts of a call, and characters of a part's name.
const PARTS: usize = 32;
const NAME: usize = 64;

#[derive(Debug, Deserialize)]
struct Timing {
    name: String,
    /// Nanoseconds since 1970, both.
    start: u64,
    end: u64,
}

/// What to ask the shim when a call is over that has this place in a trace; `None` when nobody wants to know.
pub(super) fn question(call: &str, place: &Place) -> Option<Vec<u8>> {
    if !TIMED.contains(&call) || !place.is_recorded() {
        return None;
    }
    let asked = StringValue { value: call.to_owned(), ..Default::default() };
    asked.write_to_bytes().ok()
}

/// Puts what it answered below the call.
pub(super) fn record(answer: &[u8], place: &Place) {
    for Timing { name, start, end } in read(answer) {
        let at = |nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
        place.record(name, at(start), at(end.max(start)));
    }
}

fn read(answer: &[u8]) -> Vec<Timing> {
    let text = StringValue::parse_from_bytes(answer).map(|value| value.value).unwrap_or_default();
    let mut timings: Vec<Timing> = serde_json::from_str(&text).unwrap_or_default();
    timings.truncate(PARTS);
    timings.retain(|timing| timing.name.len() <= NAME);
    timings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_shim_says_is_bounded() {
        let of = |text: &str| {
            let value = StringValue { value: text.to_owned(), ..Default::default() };
            read(&value.write_to_bytes().unwrap())
        };
        assert_eq!(of(r#"[{"name":"shim_rootfs","start":1,"end":2}]"#).len(), 1);
        assert_eq!(of(&format!(r#"[{{"name":"{}","start":1,"end":2}}]"#, "x".repeat(65))).len(), 0);
        let many = vec![r#"{"name":"a","start":1,"end":2}"#; 100].join(",");
        assert_eq!(of(&format!("[{many}]")).len(), PARTS);
        assert_eq!(of("nonsense").len(), 0);
        assert_eq!(read(b"\xff\xff").len(), 0);
    }
}
