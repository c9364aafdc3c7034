//! What is kept on disk, and what is known of it in memory.
//!
//! ```text
//! <root>/images/            an OCI image layout: other tools can read it
//!     oci-layout
//!     index.json            the truth about which images there are
//!     blobs/sha256/<hex>    verified content only
//!     ingest/<hex>          content on its way; what a broken transfer left is continued
//!     ingest/gone.<number>  content on its way out: it has lost its name, and is about to be unlinked
//! <root>/layers/<short>/    one unpacked layer
//!     layer.json            its chain id, size, and whether it is known to have reached the disk
//!     fs/                   what overlayfs stacks
//! ```
//!
//! A layer becomes visible by one rename, after its digests were found right. It is not synced on the spot: a pull does not
//! wait for the disk. Until the keeper has run `syncfs`, its record names the boot it was made in, and in another boot
//! (power loss, crash) it does not count: it is made again from its blob, or pulled again. Blobs, manifests and
//! configurations are hashed whenever they are read, so a torn one is never believed.

pub(crate) mod blobs;
pub(crate) mod index;
mod keeper;
pub(crate) mod layers;
mod locks;
mod sweep;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::digest::{ChainId, Digest};
use super::{Image, Options, manifest};
use crate::meter::Writes;

pub(crate) use blobs::Ingest;
pub(crate) use keeper::{Keeper, Task};
pub(crate) use layers::{LayerRecord, Work};
pub(crate) use locks::Guard;
pub use sweep::SweepReport;

/// Why the store can't do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be worked on.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// `index.json` is not readable.
    #[error("{path} is not readable")]
    Index {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// Content is not there.
    #[error("content {0} is not in the store")]
    MissingBlob(Digest),
    /// Content is not what its name says.
    #[error("content {0} on disk is damaged")]
    Damaged(Digest),
    /// A manifest or configuration in the store.
    #[error("an image in the store")]
    Manifest(#[from] manifest::Error),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }
}

/// Everything that is known, for readers that never wait.
#[derive(Debug, Default)]
struct State {
    images: BTreeMap<Digest, Arc<Image>>,
    /// Every tag and repository digest, to an image's id.
    names: HashMap<String, Digest>,
    layers: HashMap<ChainId, LayerRecord>,
    blobs: HashMap<Digest, u64>,
    /// Layers that something uses, with how many do.
    holds: HashMap<ChainId, usize>,
    /// Content that a pull or an import counts on.
    pins: HashMap<Digest, usize>,
    /// Holds of an earlier life were taken again: from here on what nobody needs may go.
    recovered: bool,
}

/// The content store and the index of images.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) images_directory: PathBuf,
    pub(crate) layers_directory: PathBuf,
    boot: String,
    pinned: Vec<String>,
    discard_unpacked: bool,
    writes: Option<Writes>,
    state: RwLock<State>,
    /// One writer of `index.json` at a time.
    commit: Mutex<()>,
    /// Held while content or a layer gets or loses its name on disk and its place in the state, which readers see meanwhile: the
    /// disk may be slow. Taken before the state.
    moving: Mutex<()>,
    /// One transfer for a blob, one unpacking for a chain id.
    pub(crate) blob_locks: locks::Locks<Digest>,
    pub(crate) layer_locks: locks::Locks<ChainId>,
    serial: AtomicU64,
}

impl Store {
    /// Opens the store below the options' root, making what is missing and dropping what an earlier life left half done.
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let store = Self {
            images_directory: options.root.join("images"),
            layers_directory: options.root.join("layers"),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            pinned: options.pinned.clone(),
            discard_unpacked: options.discard_unpacked_layers,
            writes: options.writes.clone(),
            state: RwLock::default(),
            commit: Mutex::default(),
            moving: Mutex::default(),
            blob_locks: locks::Locks::default(),
            layer_locks: locks::Locks::default(),
            serial: AtomicU64::new(0),
        };
        for directory in [store.blobs_directory(), store.ingest_directory(), store.layers_directory.clone()] {
            std::fs::create_dir_all(&directory).map_err(Error::io("making", &directory))?;
        }
        // Layers hold set-user-id programs: only root may find the way to them (as containerd and CRI-O have it).
        restrict(&store.layers_directory)?;
        restrict(&store.images_directory)?;
        let mut state =
            State { layers: store.load_layers()?, blobs: store.load_blobs()?, ..State::default() };
        store.load_index(&mut state)?;
        *store.state.write() = state;
        Ok(store)
    }

    /// Has what `write` does to `path` timed, as a write of that store.
    fn timed<T>(
        &self,
        store: &'static str,
        path: &Path,
        write: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let timing = self.writes.as_ref().map(|writes| writes.begin_synced(store, "write_record", path));
        let written = write();
        if let Some(timing) = timing {
            timing.end(written.is_ok());
        }
        written
    }

    /// A number that is used once in this life.
    pub(crate) fn next(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    // === images ===

    /// All images, by id.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        self.state.read().images.values().cloned().collect()
    }

    /// The image with this id.
    pub(crate) fn image(&self, id: &Digest) -> Option<Arc<Image>> {
        self.state.read().images.get(id).cloned()
    }

    /// The image of this normalised reference.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.state.read();
        state.names.get(name).and_then(|id| state.images.get(id)).cloned()
    }

    /// The only image whose id begins so.
    pub(crate) fn prefixed(&self, hex: &str) -> Option<Arc<Image>> {
        let state = self.state.read();
        let mut found = state.images.iter().filter(|(id, _)| id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some((_, image)), None) => Some(Arc::clone(image)),
            _ => None,
        }
    }

    /// Adds an image, or names to one that is there. Tags it carries leave the images they pointed to.
    pub(crate) fn put(&self, image: Image) -> Result<Arc<Image>, Error> {
        let _one = self.commit.lock();
        let mut images = self.state.read().images.clone();
        let id = image.digest();
        let mut image = image;
        if let Some(known) = images.remove(&id) {
            image.repo_tags.extend(known.repo_tags.iter().cloned());
            image.repo_digests.extend(known.repo_digests.iter().cloned());
        }
        for list in [&mut image.repo_tags, &mut image.repo_digests] {
            list.sort();
            list.dedup();
        }
        for other in images.values_mut() {
            let moved = |name: &String| image.repo_tags.contains(name) || image.repo_digests.contains(name);
            if other.repo_tags.iter().chain(&other.repo_digests).any(moved) {
                let mut changed = Image::clone(other);
                changed.repo_tags.retain(|name| !moved(name));
                changed.repo_digests.retain(|name| !moved(name));
                changed.pinned = self.is_pinned(&changed);
                *other = Arc::new(changed);
            }
        }
        image.pinned = self.is_pinned(&image);
        let image = Arc::new(image);
        images.insert(id, Arc::clone(&image));
        self.save_index(&images)?;
        self.replace(images);
        Ok(image)
    }

    /// Takes a tag off an image that has others. `None`: no image has it; `false`: it is the last one.
    pub(crate) fn untag(&self, name: &str) -> Result<Option<bool>, Error> {
        let _one = self.commit.lock();
        let mut images = self.state.read().images.clone();
        let Some(image) = images.values_mut().find(|image| image.repo_tags.iter().any(|tag| tag == name))
        else {
            return Ok(None);
        };
        if image.repo_tags.len() < 2 {
            return Ok(Some(false));
        }
        let mut changed = Image::clone(image);
        changed.repo_tags.retain(|tag| tag != name);
        changed.pinned = self.is_pinned(&changed);
        *image = Arc::new(changed);
        self.save_index(&images)?;
        self.replace(images);
        Ok(Some(true))
    }

    /// Takes an image out of the index. Its content goes with the next sweep.
    pub(crate) fn delete(&self, id: &Digest) -> Result<(), Error> {
        let _one = self.commit.lock();
        let mut images = self.state.read().images.clone();
        if images.remove(id).is_some() {
            self.save_index(&images)?;
            self.replace(images);
        }
        Ok(())
    }

    fn replace(&self, images: BTreeMap<Digest, Arc<Image>>) {
        let mut state = self.state.write();
        state.names = names(&images);
        state.images = images;
    }

    fn is_pinned(&self, image: &Image) -> bool {
        let names = || image.repo_tags.iter().chain(&image.repo_digests);
        self.pinned.iter().any(|pattern| {
            let full = pattern.parse::<super::Reference>().map(|reference| reference.to_string());
            names().any(|name| matches(pattern, name) || full.as_ref().is_ok_and(|full| full == name))
        })
    }

    // === usage ===

    /// Bytes and inodes that images take.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state.read();
        let layers = state.layers.values().map(|layer| (layer.bytes, layer.inodes));
        let blobs = state.blobs.values().map(|size| (size.div_ceil(4096) * 4096, 1));
        layers.chain(blobs).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

impl Store {
    /// Shows images with what tells the size of layers and blobs, and which layers are held, all of one moment.
    pub(crate) fn weigh<T>(
        &self,
        look: impl FnOnce(
            &[Arc<Image>],
            &dyn Fn(&ChainId) -> u64,
            &dyn Fn(&Digest) -> u64,
            &dyn Fn(&ChainId) -> bool,
        ) -> T,
    ) -> T {
        let state = self.state.read();
        let images: Vec<Arc<Image>> = state.images.values().cloned().collect();
        let layers = |chain: &ChainId| state.layers.get(chain).map_or(0, |layer| layer.bytes);
        let blobs = |digest: &Digest| state.blobs.get(digest).map_or(0, |size| size.div_ceil(4096) * 4096);
        let held = |chain: &ChainId| state.holds.contains_key(chain);
        look(&images, &layers, &blobs, &held)
    }
}

fn names(images: &BTreeMap<Digest, Arc<Image>>) -> HashMap<String, Digest> {
    let mut names = HashMap::new();
    for (id, image) in images {
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            names.insert(name.clone(), *id);
        }
    }
    names
}

fn restrict(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
        .map_err(Error::io("setting the mode of", directory))
}

/// Whether `name` is what `pattern` says, where `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// Writes a small file so that a reader sees the old or the new one, never half of it.
fn write_whole(path: &Path, bytes: &[u8], sync: bool) -> Result<(), Error> {
    use std::io::Write as _;
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        if sync {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, path)
    };
    write().map_err(Error::io("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_pinned_images() {
        assert!(matches("a/b:*", "a/b:1"));
        assert!(matches("*pause*", "registry.k8s.io/pause:3.10"));
        assert!(matches("a/b:1", "a/b:1"));
        assert!(!matches("a/b:1", "a/b:12"));
        assert!(!matches("a*b*c", "a-c-b"));
        assert!(matches("a*b*c", "a-b-c"));
    }
}
