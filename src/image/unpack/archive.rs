//! Reads a tar archive as a stream, entry by entry, with a bound on all that is kept in memory.

use std::io::{self, Read};

use super::field::BLOCK;
use super::header::{EntryKind, Header};
use super::limits::Exceeded;
use super::pax::Records;
use super::sparse::Map;
use super::{EntryError, Error, printable};

/// Longest PAX header: extended attributes have at most 64 KiB each, few at a time.
const PAX_LIMIT: u64 = 1 << 20;
/// Longest GNU name: paths end at 4096.
const NAME_LIMIT: u64 = 8192;
/// Longest PAX headers for all entries, taken together: they are applied to each one.
const GLOBAL_LIMIT: u64 = 64 << 10;

/// A tar archive being read.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    reader: R,
    /// Data of the current entry that was not read yet, and the padding after it.
    data: u64,
    padding: u64,
    global: Records,
    global_size: u64,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, data: 0, padding: 0, global: Records::default(), global_size: 0 }
    }

    /// The next entry; what the caller left of the last one's data is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Header>, Error> {
        // A second header for the same entry replaces the first: what is remembered has a bound.
        let mut own = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.fill_or_end(&mut block)? {
                return Ok(None);
            }
            let Some(mut header) = Header::read(&block)? else { return Ok(None) };
            match header.kind {
                EntryKind::Pax | EntryKind::PaxGlobal => {
                    let data = self.description(header.size, PAX_LIMIT)?;
                    let read = Records::read(&data)?;
                    if header.kind == EntryKind::PaxGlobal {
                        self.global_size += header.size;
                        if self.global_size > GLOBAL_LIMIT {
                            return Err(Exceeded::Description(GLOBAL_LIMIT).into());
                        }
                        self.global.extend(read);
                    } else {
                        own = read;
                    }
                    continue;
                }
                EntryKind::LongName => {
                    long_name = Some(self.description(header.size, NAME_LIMIT)?);
                    continue;
                }
                EntryKind::LongLink => {
                    long_link = Some(self.description(header.size, NAME_LIMIT)?);
                    continue;
                }
                EntryKind::GnuSparse => {
                    header.sparse = Some(Map::read_old(&block, &mut self.reader)?);
                    header.kind = EntryKind::File;
                }
                _ => {}
            }
            let until_zero = |name: Vec<u8>| name.split(|b| *b == 0).next().unwrap_or_default().to_vec();
            if let Some(name) = long_name.take() {
                header.path = until_zero(name);
            }
            if let Some(link) = long_link.take() {
                header.link = until_zero(link);
            }
            let mut records = self.global.clone();
            records.extend(std::mem::take(&mut own));
            let map_in_front = records.apply(&mut header)?;
            // Only files have data; the size of others is without meaning (some writers give a hard link its file's).
            let size = if header.kind == EntryKind::File { header.size } else { 0 };
            self.expect(size);
            header.size = size;
            if map_in_front && let Some(map) = header.sparse.as_mut() {
                let read = map.read_front(&mut self.reader, size)?;
                self.data -= read;
                header.size -= read;
            }
            if let Some(map) = &header.sparse {
                map.check(header.size)
                    .map_err(|source: EntryError| Error::Entry { entry: printable(&header.path), source })?;
            }
            return Ok(Some(header));
        }
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// The data of an entry that describes another one.
    fn description(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, Error> {
        if size > limit {
            return Err(Exceeded::Description(limit).into());
        }
        self.expect(size);
        let mut data = Vec::new();
        Read::by_ref(self).take(limit).read_to_end(&mut data)?;
        if self.data > 0 {
            return Err(Error::Format("it ends within an entry"));
        }
        Ok(data)
    }

    /// Reads past what is left of an entry.
    fn skip(&mut self) -> Result<(), Error> {
        let left = self.data.saturating_add(self.padding);
        if left > 0 {
            let skipped = io::copy(&mut Read::by_ref(&mut self.reader).take(left), &mut io::sink())?;
            // The padding of the last entry may be missing, its data may not.
            if skipped < self.data {
                return Err(Error::Format("it ends within an entry"));
            }
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    /// Fills a block; false when there is not a single byte any more (some writers leave the end mark out).
    fn fill_or_end(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Error> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(Error::Format("it ends within a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// The reader below, when the archive is done: what follows the end mark.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }
}

impl<R: Read> Read for Archive<R> {
    /// The current entry's data.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.reader.read(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::Error::other(Error::Format("it ends within an entry")));
        }
        self.data -= count as u64;
        Ok(count)
    }
}
