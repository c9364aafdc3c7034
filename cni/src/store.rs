//! The records: one redb file on the state directory, so that leases end with the boot.
//!
//! Every change is one write transaction, committed before the kernel is touched. A sandbox's record holds its endpoints, so a
//! join is one transaction: leases, port claims and the endpoint together.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | text |
//! | `sandboxes` | sandbox id | [`Sandbox`] as JSON |
//! | `ports` | protocol, host port, host address | sandbox id |
//! | `ipam.*` | see [`crate::ipam`] | |

pub(crate) mod backend;

use std::{
    fs::{self, File},
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    TransactionError, WriteTransaction,
};

use crate::{
    error::{Error, Result},
    model::{PortMapping, Sandbox},
};

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const SANDBOXES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sandboxes");
const PORTS: TableDefinition<'_, PortKey, &str> = TableDefinition::new("ports");

/// Protocol number, host port, host address (IPv4 mapped into IPv6, unspecified for "every address of the family").
type PortKey = (u8, u16, u128);

/// The store's pages in memory: records are small and few.
const CACHE_BYTES: usize = 1024 * 1024;

/// Turns whatever redb says into ours.
pub(crate) fn failed<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Store { action, source: Box::new(source.into()) }
}

/// The open record file.
///
/// redb gives a file up for good at its first failed write, as after a full disk. The next change opens it anew: what was
/// committed is whole, as after a kill.
#[derive(Debug)]
pub(crate) struct Store {
    database: Mutex<Arc<Database>>,
    /// Holds the lock on the file.
    file: File,
    boot_id: String,
}

impl Store {
    /// Opens the file, or makes it. Records of another boot are dropped: nothing of what they describe exists.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| Error::File {
                action: "creating",
                path: parent.to_owned(),
                source,
            })?;
        }
        let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = fs::read_to_string(boot_id)
            .map_err(|source| Error::File { action: "reading", path: boot_id.to_owned(), source })?
            .trim()
            .to_owned();
        let file_error = |source| Error::File { action: "opening", path: path.to_owned(), source };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(file_error)?;
        file.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => failed("opening")(redb::Error::DatabaseAlreadyOpen),
            fs::TryLockError::Error(source) => file_error(source),
        })?;
        // Which boot the file is of stands beside it: one of another boot may be torn and is not looked into.
        let mark = path.with_extension("boot");
        if fs::read_to_string(&mark).ok().as_deref() != Some(boot_id.as_str()) {
            file.set_len(0).map_err(file_error)?;
            fs::write(&mark, &boot_id).map_err(|source| Error::File {
                action: "writing",
                path: mark,
                source,
            })?;
        }
        let store = Self { database: Mutex::new(Arc::new(database(&file)?)), file, boot_id };
        let tx = store.write()?;
        {
            let mut meta = tx.open_table(META).map_err(failed("opening meta"))?;
            meta.insert("boot", store.boot_id.as_str()).map_err(failed("writing meta"))?;
            tx.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
            tx.open_table(PORTS).map_err(failed("opening ports"))?;
        }
        commit(tx)?;
        Ok(store)
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Waits for the change before this one.
    pub(crate) fn write(&self) -> Result<WriteTransaction> {
        // No quick repair: it makes every commit dearer, and walking a file this small after a kill takes milliseconds.
        self.begin("beginning to write", |database| database.begin_write())
    }

    pub(crate) fn read(&self) -> Result<ReadTransaction> {
        self.begin("beginning to read", |database| database.begin_read())
    }

    fn begin<T>(
        &self,
        action: &'static str,
        begin: impl Fn(&Database) -> std::result::Result<T, TransactionError>,
    ) -> Result<T> {
        // Not under the lock: who waits for a change to end would keep others from reading.
        let used = self.database.lock().clone();
        match begin(&used) {
            Err(TransactionError::Storage(StorageError::PreviousIo)) => {}
            result => return result.map_err(failed(action)),
        }
        let mut current = self.database.lock();
        if Arc::ptr_eq(&current, &used) {
            tracing::warn!("the records' file is opened anew after a failed write");
            *current = Arc::new(database(&self.file)?);
        }
        begin(&current).map_err(failed(action))
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Option<Sandbox>> {
        let table = self.read()?.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
        table
            .get(id)
            .map_err(failed("reading a sandbox"))?
            .map(|record| decode(id, record.value()))
            .transpose()
    }

    pub(crate) fn sandboxes(&self) -> Result<Vec<Sandbox>> {
        let table = self.read()?.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
        table
            .iter()
            .map_err(failed("listing sandboxes"))?
            .map(|entry| {
                let (key, record) = entry.map_err(failed("listing sandboxes"))?;
                decode(key.value(), record.value())
            })
            .collect()
    }
}

/// The database in a locked file, repaired where a write was cut off.
fn database(file: &File) -> Result<Database> {
    let again = |source| failed("opening")(redb::Error::Io(source));
    let file = file.try_clone().map_err(again)?;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.create_with_backend(backend::Unsynced(file)).map_err(failed("opening"))
}

/// Commits of this process, and the nanoseconds that they took: a transaction does not know whose store it is of.
static COMMITS: AtomicU64 = AtomicU64::new(0);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// Makes the transaction durable.
pub(crate) fn commit(tx: WriteTransaction) -> Result<()> {
    let start = Instant::now();
    tx.commit().map_err(failed("committing"))?;
    COMMITS.fetch_add(1, Ordering::Relaxed);
    NANOSECONDS.fetch_add(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    Ok(())
}

/// How many transactions this process has committed, and how long that took together.
#[must_use]
pub fn commits() -> (u64, Duration) {
    (COMMITS.load(Ordering::Relaxed), Duration::from_nanos(NANOSECONDS.load(Ordering::Relaxed)))
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Record { key: key.to_owned(), source })
}

pub(crate) fn encode<T: serde::Serialize>(key: &str, value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Record { key: key.to_owned(), source })
}

pub(crate) fn sandbox(tx: &WriteTransaction, id: &str) -> Result<Option<Sandbox>> {
    let table = tx.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
    let record = table.get(id).map_err(failed("reading a sandbox"))?;
    record.map(|record| decode(id, record.value())).transpose()
}

pub(crate) fn put_sandbox(tx: &WriteTransaction, sandbox: &Sandbox) -> Result<()> {
    let mut table = tx.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
    let record = encode(&sandbox.id, sandbox)?;
    table.insert(sandbox.id.as_str(), record.as_slice()).map_err(failed("writing a sandbox"))?;
    Ok(())
}

pub(crate) fn remove_sandbox(tx: &WriteTransaction, id: &str) -> Result<()> {
    let mut table = tx.open_table(SANDBOXES).map_err(failed("opening sandboxes"))?;
    table.remove(id).map_err(failed("removing a sandbox"))?;
    Ok(())
}

// === Host ports ===

fn key(mapping: &PortMapping, host: IpAddr) -> PortKey {
    let host = match host {
        IpAddr::V4(host) => host.to_ipv6_mapped(),
        IpAddr::V6(host) => host,
    };
    (mapping.protocol.number(), mapping.host_port, host.to_bits())
}

fn address(key: PortKey) -> IpAddr {
    std::net::Ipv6Addr::from_bits(key.2).to_canonical()
}

/// Claims host ports for a sandbox. A port on every address excludes the same port on one, and the other way round: which of
/// two pods answers must not depend on the address a client happened to use.
pub(crate) fn claim_ports<'a>(
    tx: &WriteTransaction,
    sandbox: &str,
    ports: impl Iterator<Item = (&'a PortMapping, IpAddr)>,
) -> Result<()> {
    let mut table = tx.open_table(PORTS).map_err(failed("opening ports"))?;
    for (mapping, host) in ports {
        let key = key(mapping, host);
        let range = (key.0, key.1, 0)..=(key.0, key.1, u128::MAX);
        for entry in table.range(range).map_err(failed("reading ports"))? {
            let (found, holder) = entry.map_err(failed("reading ports"))?;
            let other = address(found.value());
            let clash = other == host
                || (other.is_ipv4() == host.is_ipv4() && (other.is_unspecified() || host.is_unspecified()));
            if clash {
                let (protocol, port) = (mapping.protocol, mapping.host_port);
                let holder = format!("sandbox {:?}", holder.value());
                return Err(Error::PortTaken { protocol, host, port, holder });
            }
        }
        table.insert(key, sandbox).map_err(failed("claiming a port"))?;
    }
    Ok(())
}

/// Gives claimed ports back; those of others are left alone.
pub(crate) fn release_ports<'a>(
    tx: &WriteTransaction,
    sandbox: &str,
    ports: impl Iterator<Item = (&'a PortMapping, IpAddr)>,
) -> Result<()> {
    let mut table = tx.open_table(PORTS).map_err(failed("opening ports"))?;
    for (mapping, host) in ports {
        let key = key(mapping, host);
        let ours =
            table.get(key).map_err(failed("reading ports"))?.is_some_and(|holder| holder.value() == sandbox);
        if ours {
            table.remove(key).map_err(failed("releasing a port"))?;
        }
    }
    Ok(())
}

/// Gives back the claims of sandboxes that are not known. Returns how many there were.
pub(crate) fn release_unowned_ports(tx: &WriteTransaction, known: impl Fn(&str) -> bool) -> Result<usize> {
    let mut table = tx.open_table(PORTS).map_err(failed("opening ports"))?;
    let mut removed = 0;
    table
        .retain(|_, holder| {
            let keep = known(holder);
            removed += usize::from(!keep);
            keep
        })
        .map_err(failed("releasing ports"))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_full_disk_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records.redb");
        let store = Store::open(&path).unwrap();
        let put = |key: &str| -> Result<()> {
            let tx = store.write()?;
            tx.open_table(META)
                .map_err(failed("opening meta"))?
                .insert(key, key)
                .map_err(failed("writing"))?;
            commit(tx)
        };
        let has = |key: &str| -> Result<bool> {
            let table = store.read()?.open_table(META).map_err(failed("opening meta"))?;
            Ok(table.get(key).map_err(failed("reading"))?.is_some())
        };
        put("before").unwrap();
        backend::full::set(true);
        let error = put("full").unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{error:?}");
        assert!(put("still full").is_err());
        backend::full::set(false);
        assert!(has("before").unwrap(), "what was committed can be read before the next change");
        assert!(!has("full").unwrap());
        put("after").unwrap();
        assert!(has("after").unwrap());
        drop(store);
        let store = Store::open(&path).unwrap();
        let table = store.read().unwrap().open_table(META).unwrap();
        assert!(table.get("before").unwrap().is_some() && table.get("after").unwrap().is_some());
        assert!(table.get("full").unwrap().is_none());
    }
}
