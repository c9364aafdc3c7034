//! Mark and sweep: what no image, no hold and no pull needs goes.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Error, LayerRecord, State, Store};
use crate::image::digest::{ChainId, Digest};

/// What a broken transfer left may be continued for so long.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);

/// Names of removed content whose room is not free yet begin so.
const GONE: &str = "gone.";
/// So much is taken out of sight at once: a disk may take its time for each name, and pulls wait to give names meanwhile.
const BATCH: usize = 32;

/// What a sweep did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Layers removed.
    pub layers: Vec<ChainId>,
    /// Content removed.
    pub blobs: Vec<Digest>,
    /// Bytes that came free.
    pub bytes: u64,
    /// What could not be removed; the rest was.
    pub errors: Vec<Error>,
}

impl Store {
    /// Marks these layers as used, and these blobs.
    pub(crate) fn hold(&self, chains: &[ChainId], blobs: &[Digest]) {
        let mut state = self.state.write();
        for chain in chains {
            *state.holds.entry(*chain).or_default() += 1;
        }
        for digest in blobs {
            *state.pins.entry(*digest).or_default() += 1;
        }
    }

    /// Takes the marks back; says whether something may have become free.
    pub(crate) fn release(&self, chains: &[ChainId], blobs: &[Digest]) -> bool {
        let mut state = self.state.write();
        for chain in chains {
            if let Some(count) = state.holds.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.holds.remove(chain);
                }
            }
        }
        for digest in blobs {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
        let (needed_layers, needed_blobs) = self.needed(&state);
        chains.iter().any(|c| state.layers.contains_key(c) && !needed_layers.contains(c))
            || blobs.iter().any(|b| state.blobs.contains_key(b) && !needed_blobs.contains(b))
    }

    /// From here on sweeps remove things.
    pub(crate) fn set_recovered(&self) {
        self.state.write().recovered = true;
    }

    fn needed(&self, state: &State) -> (HashSet<ChainId>, HashSet<Digest>) {
        let mut layers: HashSet<ChainId> = state.holds.keys().copied().collect();
        let mut blobs: HashSet<Digest> = state.pins.keys().copied().collect();
        for image in state.images.values() {
            layers.extend(&image.chain);
            blobs.extend([image.descriptor.digest, image.manifest.config.digest]);
            blobs.extend(image.index.iter().map(|index| index.digest));
            for (chain, layer) in image.chain.iter().zip(&image.manifest.layers) {
                // A layer that is not known to be on disk may have to be made again.
                let unpacked = state.layers.get(chain).is_some_and(|layer| layer.unsynced_boot.is_none());
                if !(self.discard_unpacked && unpacked) {
                    blobs.insert(layer.digest);
                }
            }
        }
        (layers, blobs)
    }

    /// Removes what nothing needs. Before [`Store::set_recovered`] it does nothing: containers of an earlier life may use
    /// layers whose image is gone. Blocking; others read the state and pull meanwhile.
    pub(crate) fn sweep(&self) -> SweepReport {
        self.sweep_by(&mut |path| std::fs::remove_file(path))
    }

    fn sweep_by(&self, unlink: &mut dyn FnMut(&Path) -> io::Result<()>) -> SweepReport {
        let mut sweep = Sweep::default();
        if !self.state.read().recovered {
            return sweep.report;
        }
        while self.retire_some(&mut sweep) {
            for path in sweep.layers.drain(..) {
                self.discard(&path);
            }
            for path in sweep.blobs.drain(..) {
                sweep.report.errors.extend(unlinked(&path, unlink(&path)).err());
            }
        }
        self.sweep_ingest(&mut sweep.report);
        sweep.report
    }

    /// Takes some of what nothing needs out of sight, by names of its own: what is pulled from now on does not meet it. `false`:
    /// there is no more.
    fn retire_some(&self, sweep: &mut Sweep) -> bool {
        let _moving = self.moving.lock();
        let (layers, blobs) = {
            let mut state = self.state.write();
            let (needed_layers, needed_blobs) = self.needed(&state);
            let layers: Vec<LayerRecord> = (state.layers.values())
                .filter(|layer| {
                    !needed_layers.contains(&layer.chain) && !sweep.stuck_layers.contains(&layer.chain)
                })
                .take(BATCH)
                .cloned()
                .collect();
            let blobs: Vec<(Digest, u64)> = (state.blobs.iter())
                .filter(|(digest, _)| !needed_blobs.contains(digest) && !sweep.stuck_blobs.contains(digest))
                .map(|(digest, size)| (*digest, *size))
                .take(BATCH)
                .collect();
            for layer in &layers {
                state.layers.remove(&layer.chain);
            }
            for (digest, _) in &blobs {
                state.blobs.remove(digest);
            }
            (layers, blobs)
        };
        let some = !layers.is_empty() || !blobs.is_empty();
        for layer in layers {
            match self.retire(&layer) {
                Ok(path) => {
                    sweep.layers.push(path);
                    sweep.report.layers.push(layer.chain);
                    sweep.report.bytes += layer.bytes;
                }
                Err(error) => {
                    sweep.report.errors.push(error);
                    sweep.stuck_layers.insert(layer.chain);
                    self.state.write().layers.insert(layer.chain, layer);
                }
            }
        }
        for (digest, size) in blobs {
            match self.retire_blob(&digest) {
                Ok(path) => {
                    sweep.blobs.extend(path);
                    sweep.report.blobs.push(digest);
                    sweep.report.bytes += size;
                }
                Err(error) => {
                    sweep.report.errors.push(error);
                    sweep.stuck_blobs.insert(digest);
                    self.state.write().blobs.insert(digest, size);
                }
            }
        }
        some
    }

    /// Takes content's name away. What it is called now is still to be unlinked, unless that is done.
    fn retire_blob(&self, digest: &Digest) -> Result<Option<PathBuf>, Error> {
        let from = self.blob_path(digest);
        let to = self.ingest_directory().join(format!("{GONE}{}-{}", std::process::id(), self.next()));
        match std::fs::rename(&from, &to) {
            Ok(()) => Ok(Some(to)),
            // A disk that is full may have no room for another name.
            Err(_) => unlinked(&from, std::fs::remove_file(&from)).map(|()| None),
        }
    }

    fn sweep_ingest(&self, report: &mut SweepReport) {
        let Ok(entries) = std::fs::read_dir(self.ingest_directory()) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = format!("sha256:{name}").parse::<Digest>();
            if digest.is_ok_and(|digest| self.blob_locks.is_busy(&digest)) {
                continue;
            }
            let old =
                entry.metadata().and_then(|metadata| metadata.modified()).ok().is_none_or(|time| {
                    SystemTime::now().duration_since(time).is_ok_and(|age| age > INGEST_AGE)
                });
            // Whoever gave it that name unlinks it as well, but may have been ended before.
            if old || name.starts_with(GONE) {
                let path = entry.path();
                report.errors.extend(unlinked(&path, std::fs::remove_file(&path)).err());
            }
        }
    }
}

/// A sweep under way.
#[derive(Debug, Default)]
struct Sweep {
    report: SweepReport,
    /// Directories that have lost their names, and are still to be removed.
    layers: Vec<PathBuf>,
    /// Files likewise.
    blobs: Vec<PathBuf>,
    /// What could not be taken out of sight is not tried again.
    stuck_layers: HashSet<ChainId>,
    stuck_blobs: HashSet<Digest>,
}

/// A file that is not there any more is as good as removed.
fn unlinked(path: &Path, result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::image::Options;

    #[test]
    fn files_are_unlinked_while_others_go_on() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&Options::new(root.path())).unwrap();
        let bytes: Vec<Vec<u8>> = (0..3 * BATCH).map(|number| number.to_string().into_bytes()).collect();
        let digests: Vec<Digest> = bytes.iter().map(|bytes| store.write_blob(bytes).unwrap()).collect();
        assert!(store.sweep().blobs.is_empty(), "before the recovery nothing goes");
        store.set_recovered();
        let mut unlinks = 0;
        let report = store.sweep_by(&mut |path| {
            if unlinks == 0 {
                // Who waits for a lock that the sweep has would wait for ever.
                store.hold(&[], &digests);
                for bytes in &bytes {
                    store.write_blob(bytes).unwrap();
                }
            }
            unlinks += 1;
            std::fs::remove_file(path)
        });
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!((unlinks, report.blobs.len()), (BATCH, BATCH), "what is wanted again meanwhile stays");
        for (digest, bytes) in digests.iter().zip(&bytes) {
            assert!(store.has_blob(digest, bytes.len() as u64));
            assert_eq!(store.read_blob(digest, 100).unwrap(), *bytes);
        }
        store.release(&[], &digests);
        assert_eq!(store.sweep().blobs.len(), digests.len());
        for directory in [store.blobs_directory(), store.ingest_directory()] {
            assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_a_killed_sweep_left_goes_with_the_next() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&Options::new(root.path())).unwrap();
        store.set_recovered();
        let digest = store.write_blob(b"left").unwrap();
        let report = store.sweep_by(&mut |_| Err(io::ErrorKind::Interrupted.into()));
        assert_eq!(report.blobs, [digest]);
        // Said once, and the file is gone all the same: the end of the sweep looked again.
        assert_eq!(report.errors.len(), 1);
        assert_eq!(std::fs::read_dir(store.ingest_directory()).unwrap().count(), 0);
    }
}
