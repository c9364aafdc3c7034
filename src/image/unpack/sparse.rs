//! Sparse files: which pieces of a file the archive has (GNU tar's manual, "Storing Sparse Files").

use std::io::Read;

use super::field::{BLOCK, decimal, field, number};
use super::{EntryError, Error};

/// Most pieces of a file.
const PIECES_LIMIT: usize = 1 << 20;

/// Where a file's data goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// The file's size with its holes.
    pub(crate) real_size: u64,
    /// Offset and length of each piece, in order.
    pub(crate) pieces: Vec<(u64, u64)>,
}

impl Map {
    /// Pieces must be in order, within the file, and be as long together as the data.
    pub(crate) fn check(&self, size: u64) -> Result<(), EntryError> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, length) in &self.pieces {
            let next = offset.checked_add(*length).ok_or(EntryError::Sparse)?;
            if *offset < end || next > self.real_size {
                return Err(EntryError::Sparse);
            }
            end = next;
            sum += length;
        }
        if sum == size && i64::try_from(self.real_size).is_ok() { Ok(()) } else { Err(EntryError::Sparse) }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        if self.pieces.len() >= PIECES_LIMIT {
            return Err(Error::Format("a sparse file has too many pieces"));
        }
        self.pieces.push((offset, length));
        Ok(())
    }

    /// Old GNU form: pieces in the header and in blocks that follow it.
    pub(crate) fn read_old(block: &[u8; BLOCK], reader: &mut impl Read) -> Result<Self, Error> {
        let value = |bytes: &[u8]| {
            u64::try_from(number(bytes)?).map_err(|_| Error::Format("the map of a sparse file"))
        };
        let mut map = Map { real_size: value(field(block, 483, 12))?, pieces: Vec::new() };
        let mut take = |block: &[u8; BLOCK], at: usize, count: usize| {
            for index in 0..count {
                let start = at + index * 24;
                if field(block, start, 1) != b"\0" {
                    map.push(value(field(block, start, 12))?, value(field(block, start + 12, 12))?)?;
                }
            }
            Ok::<_, Error>(())
        };
        take(block, 386, 4)?;
        let mut more = field(block, 482, 1) == b"\x01";
        let mut extension = [0; BLOCK];
        while more {
            reader.read_exact(&mut extension)?;
            take(&extension, 0, 21)?;
            more = field(&extension, 504, 1) == b"\x01";
        }
        Ok(map)
    }

    /// Form 1.0: decimal numbers by line in front of the data, padded to a block. Returns how much was read.
    pub(crate) fn read_front(&mut self, reader: &mut impl Read, size: u64) -> Result<u64, Error> {
        const BROKEN: Error = Error::Format("the map of a sparse file");
        let mut block = [0; BLOCK];
        let (mut read, mut numbers, mut digits) = (0u64, Vec::new(), Vec::new());
        let mut wanted = 1;
        while numbers.len() < wanted {
            read += BLOCK as u64;
            if read > size {
                return Err(BROKEN);
            }
            reader.read_exact(&mut block)?;
            for byte in block {
                match byte {
                    b'\n' if numbers.len() < wanted => {
                        numbers.push(decimal(&digits)?);
                        digits.clear();
                        if let [count] = numbers[..] {
                            let count =
                                usize::try_from(count).ok().filter(|c| *c <= PIECES_LIMIT).ok_or(BROKEN)?;
                            wanted = 1 + 2 * count;
                        }
                    }
                    _ if numbers.len() >= wanted => break,
                    digit if digits.len() < 20 => digits.push(digit),
                    _ => return Err(BROKEN),
                }
            }
        }
        for pair in numbers.get(1..).unwrap_or_default().chunks(2) {
            if let [offset, length] = pair {
                self.push(*offset, *length)?;
            }
        }
        Ok(read)
    }
}

/// What PAX records say of a sparse file, in any of their three forms.
#[derive(Debug, Default)]
pub(crate) struct PaxKeys {
    map: Option<Map>,
    offset: Option<u64>,
    major: u64,
    name: Option<Vec<u8>>,
}

impl PaxKeys {
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let map = self.map.get_or_insert_default();
        match key {
            b"size" | b"realsize" => map.real_size = decimal(value)?,
            b"major" => self.major = decimal(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Error::Format("the map of a sparse file"))?;
                map.push(offset, decimal(value)?)?;
            }
            b"map" => {
                let numbers: Vec<u64> = value
                    .split(|b| *b == b',')
                    .filter(|n| !n.is_empty())
                    .map(decimal)
                    .collect::<Result<_, _>>()?;
                for pair in numbers.chunks(2) {
                    let [offset, length] = pair else {
                        return Err(Error::Format("the map of a sparse file"));
                    };
                    map.push(*offset, *length)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What they say together.
    pub(crate) fn finish(self) -> Sparse {
        Sparse { in_front: self.map.is_some() && self.major == 1, name: self.name, map: self.map }
    }
}

/// A sparse file by its PAX records.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// The file's real name: the header's own is a stand-in for tools that know no sparse files.
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) map: Option<Map>,
    /// The map's pieces stand in front of the data (form 1.0).
    pub(crate) in_front: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn maps_that_lie_are_refused() {
        let map = |real_size, pieces: &[(u64, u64)]| Map { real_size, pieces: pieces.to_vec() };
        assert!(map(10, &[(0, 2), (8, 2)]).check(4).is_ok());
        assert!(map(10, &[(0, 2), (8, 2)]).check(5).is_err());
        assert!(map(10, &[(8, 2), (0, 2)]).check(4).is_err());
        assert!(map(10, &[(9, 2)]).check(2).is_err());
        assert!(map(u64::MAX, &[(u64::MAX, 2)]).check(2).is_err());
        assert!(map(u64::MAX, &[]).check(0).is_err());
    }

    #[test]
    fn the_map_in_front_of_the_data() {
        let mut data = b"2\n0\n4\n4096\n4\n".to_vec();
        data.resize(BLOCK, 0);
        let mut map = Map { real_size: 8192, pieces: Vec::new() };
        assert_eq!(map.read_front(&mut data.as_slice(), 520).unwrap(), 512);
        assert_eq!(map.pieces, [(0, 4), (4096, 4)]);
        let mut map = Map::default();
        let lie = [b'9'; BLOCK];
        assert!(map.read_front(&mut lie.as_slice(), 512).is_err());
    }
}
