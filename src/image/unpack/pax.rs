//! PAX records: `<length> <key>=<value>\n`, overriding what a header says.

use super::Error;
use super::field::decimal;
use super::header::Header;
use super::sparse;

/// The records of one extended header, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

const BROKEN: Error = Error::Format("a PAX record");

impl Records {
    /// Takes an extended header's data apart.
    pub(crate) fn read(mut data: &[u8]) -> Result<Self, Error> {
        let mut records = Vec::new();
        while !data.is_empty() {
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or(BROKEN)?;
            let (digits, _) = data.split_at(space);
            let length: usize =
                std::str::from_utf8(digits).ok().and_then(|t| t.parse().ok()).ok_or(BROKEN)?;
            let record = data.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or(BROKEN)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(BROKEN)?;
            let (key, value) = record.split_at(equals);
            records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
            data = data.get(length..).unwrap_or_default();
        }
        Ok(Self(records))
    }

    /// Lets these records follow `earlier` ones, and win over them.
    pub(crate) fn extend(&mut self, later: Records) {
        self.0.extend(later.0);
    }

    /// Changes a header as the records say. Sparse files of the newest form carry their map in front of the data;
    /// whether it is so is returned.
    pub(crate) fn apply(&self, header: &mut Header) -> Result<bool, Error> {
        let mut sparse = sparse::PaxKeys::default();
        for (key, value) in &self.0 {
            match key.as_slice() {
                b"path" => header.path.clone_from(value),
                b"linkpath" => header.link.clone_from(value),
                b"size" => header.size = decimal(value)?,
                b"uid" => header.uid = u32::try_from(decimal(value)?).map_err(|_| BROKEN)?,
                b"gid" => header.gid = u32::try_from(decimal(value)?).map_err(|_| BROKEN)?,
                b"mtime" => header.mtime = time(value)?,
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        header.xattrs.retain(|(known, _)| known != name);
                        header.xattrs.push((name.to_vec(), value.clone()));
                    } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                        sparse.take(name, value)?;
                    }
                }
            }
        }
        let sparse = sparse.finish();
        if let Some(name) = sparse.name {
            header.path = name;
        }
        if let Some(map) = sparse.map {
            header.sparse = Some(map);
        }
        Ok(sparse.in_front)
    }
}

/// `<seconds>[.<fraction>]`, possibly negative, as seconds and nanoseconds from then on.
fn time(value: &[u8]) -> Result<(i64, i64), Error> {
    let text = std::str::from_utf8(value).map_err(|_| BROKEN)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| BROKEN)?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: i64 = digits.parse().map_err(|_| BROKEN)?;
    if nanoseconds < 0 {
        return Err(BROKEN);
    }
    Ok(match whole.starts_with('-') && nanoseconds > 0 {
        true => (seconds.saturating_sub(1), 1_000_000_000 - nanoseconds),
        false => (seconds, nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn records_are_read_and_lies_refused() {
        let records = Records::read(b"12 path=abc\n20 mtime=12.5000000\n").unwrap();
        assert_eq!(records.0.len(), 2);
        for bad in
            [&b"99 path=a\n"[..], b"5 a=b", b"x a=b\n", b"4 a\n", b"0 a=b\n", b"18446744073709551616 a=b\n"]
        {
            assert!(Records::read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"7").unwrap(), (7, 0));
        assert!(time(b"1.-5").is_err());
    }
}
