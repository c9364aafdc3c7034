//! Unpacked layers.

use crate::image::error::Chain;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, Store, write_whole};
use crate::image::digest::ChainId;
use crate::image::tree;

/// Names of directories that are not layers begin so.
const WORK: &str = ".";
/// Digits of a chain id that name its directory: overlayfs takes one page of options for all layers together.
const SHORT: usize = 12;

/// What is known of an unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// The stack whose top it is.
    pub(crate) chain: ChainId,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files, directories and all others.
    pub(crate) inodes: u64,
    /// The boot in which it was made, until it is known to have reached the disk.
    pub(crate) unsynced_boot: Option<String>,
    /// The directory's name.
    #[serde(skip)]
    directory: String,
    /// Tells a layer from the one of the same content that was made after it was removed.
    #[serde(skip)]
    making: u64,
}

impl Store {
    /// Reads the records of all layers; removes what is none, or can't be trusted any more.
    pub(super) fn load_layers(&self) -> Result<HashMap<ChainId, LayerRecord>, Error> {
        let mut layers = HashMap::new();
        let entries = std::fs::read_dir(&self.layers_directory)
            .map_err(Error::io("reading", &self.layers_directory))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("reading", &self.layers_directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let record = std::fs::read(entry.path().join("layer.json"))
                .ok()
                .and_then(|bytes| serde_json::from_slice::<LayerRecord>(&bytes).ok())
                .filter(|record| !name.starts_with(WORK) && record.chain.0.hex().starts_with(&name))
                .filter(|record| record.unsynced_boot.as_ref().is_none_or(|boot| *boot == self.boot));
            match record {
                Some(record) => {
                    layers.insert(record.chain, LayerRecord { directory: name, ..record });
                }
                None => {
                    tracing::info!(layer = name, "a layer that was not finished is removed");
                    self.discard(&entry.path());
                }
            }
        }
        Ok(layers)
    }

    /// Whether a layer is there.
    pub(crate) fn has_layer(&self, chain: &ChainId) -> bool {
        self.state.read().layers.contains_key(chain)
    }

    /// The directory that overlayfs stacks, of a layer that is there.
    pub(crate) fn layer_path(&self, chain: &ChainId) -> Option<PathBuf> {
        let state = self.state.read();
        state.layers.get(chain).map(|layer| self.layers_directory.join(&layer.directory).join("fs"))
    }

    /// A directory to unpack into. It is removed unless it is published.
    pub(crate) fn layer_work(&self) -> Result<Work, Error> {
        let path = self.layers_directory.join(format!("{WORK}work-{}-{}", std::process::id(), self.next()));
        let work = Work { path: Some(path.clone()) };
        std::fs::create_dir(&path).map_err(Error::io("making", &path))?;
        let fs = path.join("fs");
        std::fs::create_dir(&fs).map_err(Error::io("making", &fs))?;
        // Whatever the daemon's umask is: this becomes the container's `/`.
        std::fs::set_permissions(&fs, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(Error::io("setting the mode of", &fs))?;
        Ok(work)
    }

    /// Makes an unpacked and verified layer visible. The caller holds the chain's lock.
    pub(crate) fn publish_layer(
        &self,
        mut work: Work,
        chain: ChainId,
        bytes: u64,
        inodes: u64,
    ) -> Result<(), Error> {
        let Some(path) = work.path.clone() else { return Ok(()) };
        let mut record = LayerRecord {
            chain,
            bytes,
            inodes,
            unsynced_boot: Some(self.boot.clone()),
            directory: String::new(),
            making: self.next(),
        };
        let hex = chain.0.hex();
        let mut in_the_way = None;
        self.timed("layers", &self.layers_directory.join(&hex), || {
            write_record(&path, &record)?;
            let _moving = self.moving.lock();
            let taken = |name: &str| self.state.read().layers.values().any(|layer| layer.directory == name);
            record.directory = hex.get(..SHORT).filter(|name| !taken(name)).unwrap_or(&hex).to_owned();
            let target = self.layers_directory.join(&record.directory);
            if target.exists() {
                in_the_way = Some(self.retire(&record)?);
            }
            std::fs::rename(&path, &target).map_err(Error::io("renaming", &path))?;
            self.state.write().layers.insert(chain, record);
            Ok(())
        })?;
        work.path = None;
        if let Some(path) = in_the_way {
            self.discard(&path);
        }
        Ok(())
    }

    /// Has everything written so far reach the disk, and says so in the records.
    pub(super) fn sync_layers(&self) -> Result<(), Error> {
        let directory = std::fs::File::open(&self.layers_directory)
            .map_err(Error::io("opening", &self.layers_directory))?;
        self.sync_layers_by(&mut || {
            rustix::fs::syncfs(&directory)
                .map_err(|errno| Error::io("syncing", &self.layers_directory)(errno.into()))
        })
    }

    fn sync_layers_by(&self, sync: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
        let unsynced: Vec<LayerRecord> = self
            .state
            .read()
            .layers
            .values()
            .filter(|layer| layer.unsynced_boot.is_some())
            .cloned()
            .collect();
        if unsynced.is_empty() {
            return Ok(());
        }
        sync()?;
        for record in &unsynced {
            // Not while somebody removes it or makes it again.
            let _moving = self.moving.lock();
            if self.state.read().layers.get(&record.chain) == Some(record) {
                let synced = LayerRecord { unsynced_boot: None, ..record.clone() };
                write_record(&self.layers_directory.join(&synced.directory), &synced)?;
            }
        }
        if self.discard_unpacked {
            // The blobs may go as soon as the state says so: without them, a layer whose record did not reach the disk is lost.
            sync()?;
        }
        let mut state = self.state.write();
        for record in &unsynced {
            if let Some(layer) = state.layers.get_mut(&record.chain).filter(|layer| *layer == record) {
                layer.unsynced_boot = None;
            }
        }
        Ok(())
    }

    /// Takes a layer's directory out of the way at once. The caller holds `moving` and removes what is returned afterwards.
    pub(super) fn retire(&self, record: &LayerRecord) -> Result<PathBuf, Error> {
        let from = self.layers_directory.join(&record.directory);
        let to = self.layers_directory.join(format!("{WORK}gone-{}-{}", std::process::id(), self.next()));
        match std::fs::rename(&from, &to) {
            Ok(()) => Ok(to),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(to),
            Err(error) => Err(Error::io("renaming", &from)(error)),
        }
    }

    /// Removes a directory with all below; what can't be removed now goes at the next start.
    pub(super) fn discard(&self, path: &Path) {
        if let Err(error) = tree::remove_path(path) {
            tracing::warn!(path = %path.display(), error = %Chain(&error), "a layer's directory could not be removed");
        }
    }
}

fn write_record(directory: &Path, record: &LayerRecord) -> Result<(), Error> {
    let path = directory.join("layer.json");
    let bytes = serde_json::to_vec(record).map_err(|source| Error::Index { path: path.clone(), source })?;
    write_whole(&path, &bytes, false)
}

/// A directory being unpacked into.
#[derive(Debug)]
pub(crate) struct Work {
    path: Option<PathBuf>,
}

impl Work {
    /// Where the layer's files go.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path.clone().unwrap_or_default().join("fs")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = tree::remove_path(&path)
        {
            tracing::warn!(path = %path.display(), error = %Chain(&error), "an unfinished layer could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::image::Options;
    use crate::image::digest::Digest;

    const CHAIN: &[u8] = b"a layer";

    fn store(root: &Path, discard_unpacked_layers: bool) -> Store {
        let options = Options { discard_unpacked_layers, ..Options::new(root) };
        let store = Store::open(&options).unwrap();
        store.set_recovered();
        store
    }

    fn publish(store: &Store) -> ChainId {
        let chain = ChainId(Digest::of(CHAIN));
        store.publish_layer(store.layer_work().unwrap(), chain, 1, 1).unwrap();
        chain
    }

    /// Whether the layer counts as synced: in memory, and by its record.
    fn synced(store: &Store, chain: ChainId) -> (bool, bool) {
        let path = store.layer_path(&chain).unwrap().with_file_name("layer.json");
        let record: LayerRecord = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let known = store.state.read().layers.get(&chain).unwrap().unsynced_boot.is_none();
        (known, record.unsynced_boot.is_none())
    }

    #[test]
    fn blobs_may_go_only_when_the_record_has_reached_the_disk() {
        for (discard, expected) in
            [(true, vec![(false, false), (false, true)]), (false, vec![(false, false)])]
        {
            let root = tempfile::tempdir().unwrap();
            let store = store(root.path(), discard);
            let chain = publish(&store);
            store.hold(&[chain], &[]);
            let mut seen = Vec::new();
            store
                .sync_layers_by(&mut || {
                    seen.push(synced(&store, chain));
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen, expected);
            assert_eq!(synced(&store, chain), (true, true));
        }
    }

    #[test]
    fn a_layer_that_is_made_again_meanwhile_is_not_synced() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path(), true);
        let chain = publish(&store);
        let mut syncs = 0;
        store
            .sync_layers_by(&mut || {
                if syncs == 0 {
                    assert_eq!(store.sweep().layers, [chain]);
                    publish(&store);
                }
                syncs += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(synced(&store, chain), (false, false));
        store.sync_layers().unwrap();
        assert_eq!(synced(&store, chain), (true, true));
    }
}
