//! Content by digest: what is there, and what is on its way.

use crate::image::error::Chain;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Error, Store};
use crate::image::digest::Digest;

impl Store {
    pub(super) fn blobs_directory(&self) -> PathBuf {
        self.images_directory.join("blobs/sha256")
    }

    pub(super) fn ingest_directory(&self) -> PathBuf {
        self.images_directory.join("ingest")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_directory().join(digest.hex())
    }

    /// Names and sizes of all content: one directory, not its bytes.
    pub(super) fn load_blobs(&self) -> Result<HashMap<Digest, u64>, Error> {
        let directory = self.blobs_directory();
        let read = || -> io::Result<_> {
            let mut blobs = HashMap::new();
            for entry in std::fs::read_dir(&directory)? {
                let entry = entry?;
                let name = format!("sha256:{}", entry.file_name().to_string_lossy());
                if let Ok(digest) = name.parse() {
                    blobs.insert(digest, entry.metadata()?.len());
                }
            }
            Ok(blobs)
        };
        read().map_err(Error::io("reading", &directory))
    }

    /// Whether content is there with this size.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        self.state.read().blobs.get(digest) == Some(&size)
    }

    /// A small blob, hashed as it is read. One that is damaged is removed.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::MissingBlob(*digest)),
            other => other.map_err(Error::io("opening", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("reading", &path))?;
        if Digest::of(&bytes) == *digest {
            return Ok(bytes);
        }
        self.drop_blob(digest);
        Err(Error::Damaged(*digest))
    }

    /// Opens content for reading; whoever reads it holds it against its digest.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingBlob(*digest),
            _ => Error::io("opening", &path)(error),
        })
    }

    /// Holds large content against its digest; one that is damaged is removed.
    pub(crate) fn verify_blob(&self, digest: &Digest) -> Result<(), Error> {
        use sha2::Digest as _;
        let mut file = self.open_blob(digest)?;
        let mut hasher = sha2::Sha256::new();
        io::copy(&mut file, &mut hasher).map_err(Error::io("reading", &self.blob_path(digest)))?;
        if Digest::from_hasher(hasher) == *digest {
            return Ok(());
        }
        self.drop_blob(digest);
        Err(Error::Damaged(*digest))
    }

    /// Forgets content that turned out damaged.
    pub(crate) fn drop_blob(&self, digest: &Digest) {
        let path = self.blob_path(digest);
        let _moving = self.moving.lock();
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), error = %Chain(&error), "content could not be removed");
            return;
        }
        self.state.write().blobs.remove(digest);
    }

    /// Puts a small blob in.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest, bytes.len() as u64) {
            let path = self.ingest_directory().join(format!("{}.{}", digest.hex(), self.next()));
            std::fs::write(&path, bytes).map_err(Error::io("writing", &path))?;
            self.publish_blob(&path, &digest, bytes.len() as u64)?;
        }
        Ok(digest)
    }

    /// Makes verified content visible under its digest.
    pub(crate) fn publish_blob(&self, from: &Path, digest: &Digest, size: u64) -> Result<(), Error> {
        let _moving = self.moving.lock();
        std::fs::rename(from, self.blob_path(digest)).map_err(Error::io("renaming", from))?;
        self.state.write().blobs.insert(*digest, size);
        Ok(())
    }

    /// The place for content on its way; the caller holds the digest's lock.
    pub(crate) fn ingest(&self, digest: &Digest) -> Result<Ingest, Error> {
        Ingest::open(self.ingest_directory().join(digest.hex()))
    }

    /// A file of its own for content whose digest is not known yet.
    pub(crate) fn ingest_unknown(&self) -> Result<Ingest, Error> {
        let ingest = Ingest::open(self.ingest_directory().join(format!("unknown.{}", self.next())))?;
        ingest.file.set_len(0).map_err(Error::io("emptying", &ingest.path))?;
        Ok(Ingest { there: 0, ..ingest })
    }
}

/// Content on its way: a file that grows.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) path: PathBuf,
    file: File,
    /// How much an earlier transfer left.
    pub(crate) there: u64,
}

impl Ingest {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("opening", &path))?;
        let there = file.metadata().map_err(Error::io("reading", &path))?.len();
        Ok(Self { path, file, there })
    }

    /// What an earlier transfer left, to be read again.
    pub(crate) fn left_over(&self) -> Result<impl Read + use<>, Error> {
        let file = File::open(&self.path).map_err(Error::io("opening", &self.path))?;
        Ok(file.take(self.there))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Throws away what is there.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
