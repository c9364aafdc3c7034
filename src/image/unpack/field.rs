//! The fields that headers, PAX records and maps of sparse files are made of.

use super::Error;

/// Size of a header and of the unit that data is padded to.
pub(crate) const BLOCK: usize = 512;

/// The bytes of `block[at..at + length]`.
pub(crate) fn field(block: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// A field up to its first zero byte.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number: octal digits, or two's complement with the high bit set (GNU).
pub(crate) fn number(bytes: &[u8]) -> Result<i64, Error> {
    let broken = || Error::Format("a number in a header");
    if let Some(first) = bytes.first().filter(|b| **b & 0x80 != 0) {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in bytes.iter().enumerate() {
            let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| broken());
    }
    let digits: Vec<u8> = text(bytes).iter().copied().filter(|b| *b != b' ').collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(&digits).map_err(|_| broken())?;
    i64::from_str_radix(digits, 8).map_err(|_| broken())
}

/// A number that has no sign to have.
pub(crate) fn unsigned(bytes: &[u8]) -> Result<u64, Error> {
    u64::try_from(number(bytes)?).map_err(|_| Error::Format("a negative number in a header"))
}

/// A number in text, without a sign: PAX records and maps of sparse files have them.
pub(crate) fn decimal(value: &[u8]) -> Result<u64, Error> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Error::Format("a decimal number"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn numbers_in_both_forms() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]).unwrap(), 256);
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]).unwrap(), -2);
        assert!(number(b"9").is_err());
        assert!(number(&[0x9f; 12]).is_err());
    }
}
