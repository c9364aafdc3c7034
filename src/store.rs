//! Durable records: one small file each, replaced as a whole.
//!
//! A record is written to a temporary file and renamed, so a reader sees the old or the new one and never a part, also
//! when the daemon is killed in between. Records are not synced one by one: after a power loss the pods they speak of
//! are gone anyway, a torn record is recognised by its checksum, and what it owned is removed as a thing without owner.
//! That keeps a slow disk off the path of a pod start.
//!
//! File format: the 4 bytes `BRT1`, the first 8 bytes of the SHA-256 of the payload, the payload (a protobuf message).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest, Sha256};

use crate::meter::Writes;

const MAGIC: &[u8; 4] = b"BRT1";
const CHECK: usize = 8;
/// Largest record that is read back; a CRI message is bounded to 16 MiB on its way in.
const MAX_RECORD: u64 = 32 << 20;

/// What can go wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or file could not be used.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The worker that does the file's input and output was stopped.
    #[error("writing a record was cut off by the daemon's shutdown")]
    Interrupted,
}

impl crate::error::Classify for Error {
    fn kind(&self) -> crate::error::Kind {
        crate::error::Kind::Internal
    }
}

/// A directory of records of one kind, named by id.
#[derive(Clone, Debug)]
pub struct Records {
    directory: PathBuf,
    /// What times its writes, and under which name.
    watched: Option<(Writes, &'static str)>,
}

/// What a directory of records holds.
#[derive(Debug)]
pub struct Loaded<M> {
    /// Whole records by id.
    pub records: Vec<(String, M)>,
    /// Ids whose file was torn or of another format; the files were removed.
    pub damaged: Vec<String>,
}

impl Records {
    /// Opens the directory, making it when it is missing.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory can't be made.
    pub fn open(directory: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&directory).map_err(|source| Error::Io {
            action: "making the directory",
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory, watched: None })
    }

    /// Times what is written from now on, as a store of that name, and shows it while it is under way.
    #[must_use]
    pub fn watched(self, writes: Writes, store: &'static str) -> Self {
        Self { watched: Some((writes, store)), ..self }
    }

    /// Writes the record of `id`, replacing the one before. On a full disk it is written over the one before: a pod must be
    /// stopped and removed there too, or the disk never has space again.
    ///
    /// # Errors
    /// [`Error::Io`] when the file can't be written or renamed: the record before is then still whole.
    pub async fn put(&self, id: &str, message: &impl Message) -> Result<(), Error> {
        let bytes = encode(message);
        let target = self.directory.join(id);
        let temporary = self.directory.join(format!(".{id}"));
        let watched = self.begin("write_record", &target);
        let written = blocking(move || {
            if let Err(source) = write(&temporary, &bytes) {
                let _ = fs::remove_file(&temporary);
                if source.kind() == io::ErrorKind::StorageFull && overwrite(&target, &bytes).is_ok() {
                    return Ok(());
                }
                return Err(Error::Io { action: "writing", path: temporary, source });
            }
            fs::rename(&temporary, &target).map_err(|source| Error::Io {
                action: "renaming a record to",
                path: target,
                source,
            })
        })
        .await;
        if let Some(watched) = watched {
            watched.end(written.is_ok());
        }
        written
    }

    fn begin(&self, action: &'static str, path: &Path) -> Option<crate::meter::Write> {
        self.watched.as_ref().map(|(writes, store)| writes.begin(store, action, path))
    }

    /// Removes the record of `id`; one that is not there is fine.
    ///
    /// # Errors
    /// [`Error::Io`] when the file can't be removed.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.directory.join(id);
        let watched = self.begin("remove_record", &path);
        let removed = blocking(move || match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { action: "removing", path, source })
            }
            _ => Ok(()),
        })
        .await;
        if let Some(watched) = watched {
            watched.end(removed.is_ok());
        }
        removed
    }

    /// Reads every record. Torn ones and leftovers of a cut-off write are removed and their ids returned.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory or a file can't be read.
    pub fn load<M: Message + Default>(&self) -> Result<Loaded<M>, Error> {
        let reading = |source| Error::Io { action: "reading", path: self.directory.clone(), source };
        let mut loaded = Loaded { records: Vec::new(), damaged: Vec::new() };
        for entry in fs::read_dir(&self.directory).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                let _ = fs::remove_file(&path);
                continue;
            }
            match read(&path)?.as_deref().and_then(decode) {
                Some(message) => loaded.records.push((name, message)),
                None => {
                    let _ = fs::remove_file(&path);
                    loaded.damaged.push(name);
                }
            }
        }
        Ok(loaded)
    }
}

/// Room that a record keeps beyond its end, bytes: what its later versions grow by, the times and the status of its end.
const SLACK: u64 = 512;
/// The usual unit of allocation, bytes.
const BLOCK: u64 = 4096;

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length.next_multiple_of(BLOCK) - length < SLACK {
        // Where a file system can't, it can't.
        let _ = fallocate(&file, FallocateFlags::KEEP_SIZE, length, SLACK);
    }
    Ok(())
}

/// Writes into the blocks that a file has, when they are enough. A reader may see a part of it until this returns: its checksum
/// tells.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    if file.metadata()?.blocks().saturating_mul(512) < length {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.write_all_at(bytes, 0)?;
    file.set_len(length)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Interrupted)?
}

fn encode(message: &impl Message) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(MAGIC.len() + CHECK + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&Sha256::digest(&payload)[..CHECK]);
    bytes.extend_from_slice(&payload);
    bytes
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (check, payload) = rest.split_at_checked(CHECK)?;
    (Sha256::digest(payload)[..CHECK] == *check).then(|| M::decode(payload).ok()).flatten()
}

/// The file's bytes, or `None` when it is larger than any record of ours.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Io { action: "reading", path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_RECORD {
        return Ok(None);
    }
    fs::read(path).map(Some).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::berth::v1::PodRecord;

    fn record(id: &str) -> PodRecord {
        PodRecord { id: id.to_owned(), runtime_handler: "berth".to_owned(), ..Default::default() }
    }

    #[tokio::test]
    async fn a_record_is_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().join("pods")).unwrap();
        records.put("a", &record("a")).await.unwrap();
        records.put("a", &PodRecord { created_at: 7, ..record("a") }).await.unwrap();
        let loaded = records.load::<PodRecord>().unwrap();
        assert_eq!(loaded.records, [("a".to_owned(), PodRecord { created_at: 7, ..record("a") })]);
        records.remove("a").await.unwrap();
        records.remove("a").await.unwrap();
        assert!(records.load::<PodRecord>().unwrap().records.is_empty());
    }

    /// What [`Records::put`] does on a full disk.
    #[test]
    fn a_record_grows_a_little_in_its_own_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        for length in [100, 3500, 4090, 4096, 4100] {
            write(&path, &vec![1; length]).unwrap();
            let grown = vec![2; length + 500];
            overwrite(&path, &grown).unwrap();
            assert_eq!(fs::read(&path).unwrap(), grown);
            overwrite(&path, &[3]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), [3]);
        }
        write(&path, &[1; 100]).unwrap();
        assert!(overwrite(&path, &[2; 40_000]).is_err());
        assert_eq!(fs::read(&path).unwrap(), [1; 100], "the one before is whole");
        assert!(overwrite(&directory.path().join("none"), &[1]).is_err());
    }

    #[tokio::test]
    async fn torn_records_are_found_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        for id in ["whole", "short", "flipped", "empty"] {
            records.put(id, &record(id)).await.unwrap();
        }
        let path = |id| directory.path().join(id);
        let bytes = fs::read(path("short")).unwrap();
        fs::write(path("short"), &bytes[..bytes.len() - 1]).unwrap();
        let mut bytes = fs::read(path("flipped")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path("flipped"), bytes).unwrap();
        fs::write(path("empty"), b"").unwrap();
        fs::write(path(".half"), b"BR").unwrap();

        let loaded = records.load::<PodRecord>().unwrap();
        assert_eq!(loaded.records.len(), 1);
        let mut damaged = loaded.damaged;
        damaged.sort();
        assert_eq!(damaged, ["empty", "flipped", "short"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
