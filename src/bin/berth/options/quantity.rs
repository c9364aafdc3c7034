//! Memory (`512m`) and processors (`1.5`).

use anyhow::{Result, anyhow, bail};

/// The period that a share of processor time is counted over, microseconds: the kernel's own default.
pub(crate) const CPU_PERIOD_MICROS: i64 = 100_000;
/// The kernel refuses quotas below a millisecond, which is a hundredth of a processor.
const LEAST_QUOTA_MICROS: i64 = 1_000;

/// Bytes of memory: a number with an optional unit, powers of 1024 (`k`, `m`, `g`, `t`, also `Ki`, `MiB`).
pub(crate) fn memory(text: &str) -> Result<i64> {
    let wrong = || anyhow!("`{text}` is no amount of memory: write it like 512m or 2g");
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: i64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kb" | "kib" => 10,
        "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => bail!(wrong()),
    };
    let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes) }
}

/// Processor time: a decimal number of processors as a quota in each [`CPU_PERIOD_MICROS`].
pub(crate) fn cpu_quota_micros(text: &str) -> Result<i64> {
    let wrong = || anyhow!("`{text}` is no number of processors: write it like 2 or 0.5, at least 0.01");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let plain = |part: &str| part.chars().all(|char| char.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(wrong());
    }
    // Five decimals are one microsecond of the period; finer ones are cut.
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(5).collect();
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let fraction: i64 = fraction.parse().map_err(|_| wrong())?;
    let quota = whole
        .checked_mul(CPU_PERIOD_MICROS)
        .and_then(|quota| quota.checked_add(fraction))
        .ok_or_else(wrong)?;
    if quota < LEAST_QUOTA_MICROS { Err(wrong()) } else { Ok(quota) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_units() {
        for (text, bytes) in [
            ("1024", 1024),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
            ("1Ki", 1024),
            ("3MiB", 3 << 20),
            ("7b", 7),
        ] {
            assert_eq!(memory(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "m", "0", "-1m", "1.5g", "1x", "9999999999g"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors() {
        for (text, quota) in [
            ("1", 100_000),
            ("1.5", 150_000),
            (".5", 50_000),
            ("0.01", 1_000),
            ("2.", 200_000),
            ("0.123456", 12_345),
        ] {
            assert_eq!(cpu_quota_micros(text).unwrap(), quota, "{text}");
        }
        for text in ["", ".", "0", "0.001", "-1", "1e3", "two", "99999999999999999999"] {
            assert!(cpu_quota_micros(text).is_err(), "{text}");
        }
    }
}
