//! Lengths of time (`90s`, `1h30m`, `2d`, plain seconds) and moments (RFC 3339, seconds since 1970, or that long ago).

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A length of time: a number of seconds, or numbers with units (ms, s, m, h, d), largest first or not.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("`{text}` is no length of time: write it like 10, 90s, 1h30m or 2d");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|char: char| char.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => bail!(wrong()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A plain number from here on is a moment as `date +%s` prints it: nobody means thirty years ago.
const MOMENTS: i64 = 1_000_000_000;

/// A moment: RFC 3339, seconds since 1970 (with up to nine decimals, as docker takes them), or a length of time before now.
pub(crate) fn moment(text: &str) -> Result<OffsetDateTime> {
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(moment);
    }
    if let Some(moment) = since_1970(text) {
        return Ok(moment);
    }
    let before = parse(text).map_err(|_| {
        anyhow!("`{text}` is no moment: write it like 2026-01-31T10:00:00Z, or 10m for ten minutes ago")
    })?;
    let before = time::Duration::try_from(before).map_err(|_| anyhow!("`{text}` is too long ago"))?;
    OffsetDateTime::now_utc().checked_sub(before).ok_or_else(|| anyhow!("`{text}` is too long ago"))
}

fn since_1970(text: &str) -> Option<OffsetDateTime> {
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(decimals) || decimals.len() > 9 {
        return None;
    }
    let seconds: i64 = seconds.parse().ok().filter(|seconds| *seconds >= MOMENTS)?;
    let nanos = format!("{decimals:0<9}").parse().ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.checked_add(time::Duration::nanoseconds(nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, millis) in [
            ("10", 10_000),
            ("0", 0),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("250ms", 250),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "s", "1x", "-5", "1.5h", "5m3", "99999999999999999999s", "ten"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("length of time"), "{text}: {error}");
        }
    }

    #[test]
    fn moments() {
        assert_eq!(moment("2026-01-31T10:00:00Z").unwrap().unix_timestamp(), 1_769_853_600);
        let age = OffsetDateTime::now_utc() - moment("10m").unwrap();
        assert!((599..602).contains(&age.whole_seconds()));
        assert_eq!(moment("1769853600").unwrap().unix_timestamp(), 1_769_853_600);
        let precise = moment("1769853600.25").unwrap();
        assert_eq!(precise.unix_timestamp_nanos(), 1_769_853_600_250_000_000);
        assert!(OffsetDateTime::now_utc() - moment("90").unwrap() < time::Duration::seconds(100));
        assert!(moment("yesterday").unwrap_err().to_string().contains("10m for ten minutes ago"));
        assert!(moment("18446744073709551615").is_err());
    }
}
