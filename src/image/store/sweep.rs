//! Mark and sweep: what no image, no hold and no pull needs goes.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use super::{Error, State, Store};
use crate::image::digest::{ChainId, Digest};

/// What a broken transfer left may be continued for so long.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);

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
    /// layers whose image is gone. Blocking.
    pub(crate) fn sweep(&self) -> SweepReport {
        let mut report = SweepReport::default();
        let mut gone = Vec::new();
        {
            let mut state = self.state.write();
            if !state.recovered {
                return report;
            }
            let (layers, blobs) = self.needed(&state);
            let dead: Vec<_> =
                state.layers.values().filter(|layer| !layers.contains(&layer.chain)).cloned().collect();
            for layer in dead {
                match self.retire(&layer) {
                    Ok(path) => {
                        gone.push(path);
                        state.layers.remove(&layer.chain);
                        report.layers.push(layer.chain);
                        report.bytes += layer.bytes;
                    }
                    Err(error) => report.errors.push(error),
                }
            }
            let dead: Vec<_> = state
                .blobs
                .iter()
                .filter(|(digest, _)| !blobs.contains(digest))
                .map(|(d, s)| (*d, *s))
                .collect();
            for (digest, size) in dead {
                let path = self.blob_path(&digest);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        report.errors.push(Error::io("removing", &path)(error));
                    }
                    _ => {
                        state.blobs.remove(&digest);
                        report.blobs.push(digest);
                        report.bytes += size;
                    }
                }
            }
        }
        for path in gone {
            self.discard(&path);
        }
        self.sweep_ingest(&mut report);
        report
    }

    fn sweep_ingest(&self, report: &mut SweepReport) {
        let Ok(entries) = std::fs::read_dir(self.ingest_directory()) else { return };
        for entry in entries.flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>();
            if digest.is_ok_and(|digest| self.blob_locks.is_busy(&digest)) {
                continue;
            }
            let old =
                entry.metadata().and_then(|metadata| metadata.modified()).ok().is_none_or(|time| {
                    SystemTime::now().duration_since(time).is_ok_and(|age| age > INGEST_AGE)
                });
            if old && let Err(error) = std::fs::remove_file(entry.path()) {
                report.errors.push(Error::io("removing", &entry.path())(error));
            }
        }
    }
}
