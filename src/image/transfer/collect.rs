//! Takes an archive in: every file becomes content with a digest, not yet visible.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::{BUFFER, Error};
use crate::image::digest::Digest;
use crate::image::store::{Ingest, Store};
use crate::image::unpack::{Archive, EntryKind, Limits, printable};

/// Most entries of an archive: it has one for each layer and document, not for each file.
const ENTRIES_LIMIT: usize = 100_000;
/// Names are followed through so many links.
const LINKS: usize = 8;

/// Files of an archive by name. What nobody takes goes with it.
#[derive(Debug, Default)]
pub(super) struct Collected {
    files: HashMap<String, Kept>,
    links: HashMap<String, String>,
}

/// One file.
#[derive(Debug)]
struct Kept {
    ingest: Option<Ingest>,
    digest: Digest,
    size: u64,
}

impl Collected {
    /// Reads a tar archive to its end, whatever it is packed with.
    pub(super) fn read(
        store: &Store,
        reader: impl Read,
        limits: Limits,
    ) -> Result<Self, crate::image::Error> {
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        let start = std::io::BufRead::fill_buf(&mut reader).map_err(reading)?.to_vec();
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::entries(store, flate2::bufread::MultiGzDecoder::new(reader), limits)
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::entries(store, zstd::stream::read::Decoder::with_buffer(reader).map_err(reading)?, limits)
        } else {
            Self::entries(store, reader, limits)
        }
    }

    fn entries(store: &Store, reader: impl Read, limits: Limits) -> Result<Self, crate::image::Error> {
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, reader));
        let mut collected = Self::default();
        let mut buffer = vec![0; BUFFER];
        while let Some(header) = archive.next().map_err(Error::Archive)? {
            if collected.files.len() + collected.links.len() >= ENTRIES_LIMIT {
                return Err(Error::TooMany(ENTRIES_LIMIT).into());
            }
            let name = clean(&printable(&header.path));
            match header.kind {
                EntryKind::File => {
                    limits.check(header.size, header.size).map_err(|e| Error::Archive(e.into()))?;
                    let kept = keep(store, &mut archive, &mut buffer)?;
                    // A layout's own names are promises.
                    if name.strip_prefix("blobs/sha256/").is_some_and(|hex| hex != kept.digest.hex()) {
                        kept.discard();
                        return Err(Error::Damaged(name).into());
                    }
                    if let Some(old) = collected.files.insert(name, kept) {
                        old.discard();
                    }
                }
                EntryKind::Symlink => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = clean(&format!("{directory}/{}", printable(&header.link)));
                    collected.links.insert(name, target);
                }
                EntryKind::HardLink => {
                    collected.links.insert(name, clean(&printable(&header.link)));
                }
                _ => {}
            }
        }
        Ok(collected)
    }

    fn resolve(&self, name: &str) -> Result<&str, Error> {
        let wanted = clean(name);
        let mut name = wanted.as_str();
        for _ in 0..LINKS {
            if let Some((known, _)) = self.files.get_key_value(name) {
                return Ok(known);
            }
            match self.links.get(name) {
                Some(target) => name = target,
                None => break,
            }
        }
        Err(Error::Missing(wanted))
    }

    /// Digest and size of a file.
    pub(super) fn look(&self, name: &str) -> Result<(Digest, u64), Error> {
        let name = self.resolve(name)?;
        self.files
            .get(name)
            .map(|kept| (kept.digest, kept.size))
            .ok_or_else(|| Error::Missing(name.to_owned()))
    }

    /// The first bytes of a file.
    pub(super) fn bytes(
        &self,
        store: &Store,
        name: &str,
        limit: u64,
    ) -> Result<Vec<u8>, crate::image::Error> {
        let name = self.resolve(name)?;
        let kept = self.files.get(name).ok_or_else(|| Error::Missing(name.to_owned()))?;
        let file = match &kept.ingest {
            Some(ingest) => File::open(&ingest.path).map_err(reading)?,
            None => store.open_blob(&kept.digest)?,
        };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(reading)?;
        Ok(bytes)
    }

    /// Makes a file visible as content.
    pub(super) fn publish(&mut self, store: &Store, name: &str) -> Result<(), crate::image::Error> {
        let name = self.resolve(name)?.to_owned();
        if let Some(kept) = self.files.get_mut(&name)
            && let Some(ingest) = kept.ingest.take()
        {
            store.publish_blob(&ingest.path, &kept.digest, kept.size)?;
        }
        Ok(())
    }
}

impl Kept {
    fn discard(mut self) {
        if let Some(ingest) = self.ingest.take() {
            ingest.remove();
        }
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        for (_, kept) in self.files.drain() {
            kept.discard();
        }
    }
}

fn keep(store: &Store, data: &mut impl Read, buffer: &mut [u8]) -> Result<Kept, crate::image::Error> {
    let mut ingest = store.ingest_unknown()?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let result = loop {
        match data.read(buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                let piece = buffer.get(..count).unwrap_or_default();
                hasher.update(piece);
                size += count as u64;
                if let Err(source) = ingest.write(piece) {
                    break Err(Error::Io { what: "storing", source });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => break Err(Error::Archive(error.into())),
        }
    };
    match result {
        Ok(()) => Ok(Kept { ingest: Some(ingest), digest: Digest::from_hasher(hasher), size }),
        Err(error) => {
            ingest.remove();
            Err(error.into())
        }
    }
}

fn reading(source: std::io::Error) -> Error {
    Error::Io { what: "reading", source }
}

/// A name within the archive: it is a key here, never a path.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
