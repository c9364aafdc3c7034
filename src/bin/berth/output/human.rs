//! Times, sizes and ids as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SECOND_NANOS: i64 = 1_000_000_000;
/// What an id is cut to: enough to be unique on a node, as Docker's and crictl's users know it.
const SHORT_ID: usize = 12;

/// Now, in nanoseconds since 1970.
pub(crate) fn now_nanos() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or_default()
}

/// How long ago a moment was; both in nanoseconds since 1970.
pub(crate) fn ago(then: i64, now: i64) -> String {
    if then <= 0 { "-".to_owned() } else { format!("{} ago", span(now.saturating_sub(then))) }
}

/// A length of time in its largest unit: `3 minutes`.
pub(crate) fn span(nanos: i64) -> String {
    const UNITS: [(&str, i64); 7] = [
        ("year", 365 * 86_400),
        ("month", 30 * 86_400),
        ("week", 7 * 86_400),
        ("day", 86_400),
        ("hour", 3_600),
        ("minute", 60),
        ("second", 1),
    ];
    let seconds = nanos / SECOND_NANOS;
    let unit = UNITS.iter().find(|(_, length)| seconds >= *length);
    match unit {
        None => "less than a second".to_owned(),
        Some((name, length)) => {
            let count = seconds / length;
            format!("{count} {name}{}", if count == 1 { "" } else { "s" })
        }
    }
}

/// Bytes in decimal units, three digits: `48.2MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    // Whole tenths, so that no float rounding shows: the value in tenths of the unit.
    let mut tenths = u128::from(bytes) * 10 / 1000;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("EB");
    if tenths >= 1000 {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

/// An id or digest without its algorithm, cut to what people need.
pub(crate) fn short_id(id: &str, no_trunc: bool) -> String {
    if no_trunc {
        return id.to_owned();
    }
    let bare = id.split_once(':').map_or(id, |(_, hex)| hex);
    bare.chars().take(SHORT_ID).collect()
}

/// Nanoseconds since 1970 as RFC 3339 in UTC; `None` for 0, which the CRI uses for "not yet".
pub(crate) fn timestamp(nanos: i64) -> Option<String> {
    if nanos == 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_in_their_largest_unit() {
        let seconds = |count: i64| span(count * SECOND_NANOS);
        assert_eq!(span(5), "less than a second");
        assert_eq!(seconds(1), "1 second");
        assert_eq!(seconds(59), "59 seconds");
        assert_eq!(seconds(60), "1 minute");
        assert_eq!(seconds(3 * 3600 + 59), "3 hours");
        assert_eq!(seconds(8 * 86_400), "1 week");
        assert_eq!(seconds(800 * 86_400), "2 years");
    }

    #[test]
    fn ago_knows_never_and_clocks_that_disagree() {
        assert_eq!(ago(0, 5), "-");
        assert_eq!(ago(10 * SECOND_NANOS, 5 * SECOND_NANOS), "less than a second ago");
        assert_eq!(ago(SECOND_NANOS, 181 * SECOND_NANOS), "3 minutes ago");
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (4_261_000, "4.2MB"),
            (48_234_567, "48.2MB"),
            (123_456_789, "123MB"),
            (999_999_999, "999MB"),
            (1_000_000_000, "1.0GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ids_are_cut_and_digests_bare() {
        assert_eq!(short_id("sha256:0123456789abcdef", false), "0123456789ab");
        assert_eq!(short_id("0123456789abcdef", false), "0123456789ab");
        assert_eq!(short_id("sha256:0123456789abcdef", true), "sha256:0123456789abcdef");
    }

    #[test]
    fn timestamps_are_utc_with_nanoseconds() {
        assert_eq!(timestamp(1_500_000_000_123_456_789).as_deref(), Some("2017-07-14T02:40:00.123456789Z"));
        assert_eq!(timestamp(0), None);
    }
}
