//! The one pass over a layer: decompress, hash, bound, unpack.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::entry::Writer;
use super::root::Root;
use super::{Archive, Error, Limits, limits};
use crate::image::digest::Digest;

/// Small reads of headers are served from here.
const BUFFER: usize = 128 << 10;

/// What came of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the decompressed archive.
    pub(crate) diff_id: Digest,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files, directories and all others.
    pub(crate) inodes: u64,
    /// Directories that the archive needs without having them.
    pub(crate) implicit: Vec<Vec<u8>>,
}

/// Unpacks the layer that `source` yields, compressed or not, into the existing directory `target`.
///
/// Blocking; reads `source` to its end. `compressed` tells how much of it was read so far.
pub(crate) fn unpack(
    source: impl BufRead,
    compressed: &Rc<Cell<u64>>,
    target: &Path,
    limits: Limits,
) -> Result<Unpacked, Error> {
    let mut source = source;
    // A source may hand out few bytes at first; the marks are four bytes long.
    let start = source.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        run(flate2::bufread::MultiGzDecoder::new(source), compressed, target, limits)
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(start) {
        let decoder = zstd::stream::read::Decoder::with_buffer(source)?;
        run(decoder, compressed, target, limits)
    } else {
        run(source, compressed, target, limits)
    }
}

/// zstd archives may begin with a frame for others (RFC 8878, 3.1.2), as zstd:chunked ones do.
fn is_skippable_frame(start: &[u8]) -> bool {
    matches!(start, [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50)
}

fn run(
    decoder: impl Read,
    compressed: &Rc<Cell<u64>>,
    target: &Path,
    limits: Limits,
) -> Result<Unpacked, Error> {
    let hashing = Hashing {
        inner: decoder,
        hasher: Sha256::new(),
        count: 0,
        compressed: Rc::clone(compressed),
        limits,
    };
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, hashing));
    let directory = |errno: rustix::io::Errno| Error::Directory {
        what: "opening the layer's directory",
        source: errno.into(),
    };
    let mut writer = Writer::new(Root::open(target).map_err(directory)?);
    let mut entries = 0;
    while let Some(header) = archive.next()? {
        entries += 1;
        if entries > limits.layer_entries {
            return Err(limits::Exceeded::Entries(limits.layer_entries).into());
        }
        writer.apply(&header, &mut archive)?;
    }
    // What follows the end mark belongs to the digests.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink())?;
    writer.finish()?;
    let implicit: Vec<Vec<u8>> = writer.root.implicit().cloned().collect();
    Ok(Unpacked {
        diff_id: Digest::from_hasher(rest.into_inner().hasher),
        bytes: writer.bytes,
        inodes: writer.inodes + implicit.len() as u64,
        implicit,
    })
}

/// Hashes and bounds what it passes on.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
    compressed: Rc<Cell<u64>>,
    limits: Limits,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.count += count as u64;
        self.limits
            .check(self.compressed.get(), self.count)
            .map_err(|exceeded| io::Error::other(Error::Limit(exceeded)))?;
        Ok(count)
    }
}
