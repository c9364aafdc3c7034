//! Images: from a registry to directories that overlayfs can stack.
//!
//! ```text
//! pull ─> reference ─> registry (hosts, tokens) ─> manifest ─> for each layer: transfer ─> unpack ─> store
//! ```
//!
//! [`Images`] is the room's door. Reading ([`Images::get`], [`Images::list`], [`Images::fs_info`]) never waits: it looks at
//! what is in memory. Pulls share work by digest and chain id, and stop when their caller goes away.
//!
//! After a start, whoever knows which containers live takes [`Images::hold_chains`] for them and then calls
//! [`Images::sweep`] once; before that nothing is removed.

mod commit;
pub mod digest;
mod error;
mod hold;
mod manifest;
pub mod owners;
pub mod pack;
mod platform;
mod pull;
mod push;
pub mod reference;
pub mod registry;
pub mod store;
mod tag;
pub mod transfer;
pub(crate) mod tree;
pub mod unpack;
mod usage;

use crate::image::error::Chain;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_spec::image::ImageConfiguration;

pub use commit::CommitRequest;
pub use digest::{ChainId, Digest};
pub use error::Error;
pub use hold::LayerHold;
pub use manifest::{Descriptor, Manifest};
pub use platform::Platform;
pub use pull::{Phase, Progress, PullRequest};
pub use push::{PushRequest, Pushed};
pub use reference::Reference;
pub use registry::Credentials;
pub use store::SweepReport;
pub use unpack::Limits;
pub use usage::{ImageUsage, Usage};

use crate::meter::{Pulls, Writes};
use registry::Registry;
use store::{Keeper, Store, Task};

/// How images are kept and fetched.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where images and layers are kept.
    pub root: PathBuf,
    /// Where host files are looked for, the first directory first.
    pub config_path: Vec<PathBuf>,
    /// Layers that one pull downloads at a time.
    pub max_parallel_downloads: usize,
    /// How long a transfer may stand still.
    pub progress_timeout: Duration,
    /// Images that the kubelet must not remove: references, `*` for any text.
    pub pinned: Vec<String>,
    /// Bounds of a layer.
    pub limits: Limits,
    /// Whether a layer's content is dropped once it is unpacked and on disk. Such images can't be exported.
    pub discard_unpacked_layers: bool,
    /// Counts pulls.
    pub meter: Option<Pulls>,
    /// Times what is written of images and layers.
    pub writes: Option<Writes>,
}

impl Options {
    /// The defaults below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            config_path: Vec::new(),
            max_parallel_downloads: 3,
            progress_timeout: Duration::from_secs(60),
            pinned: Vec::new(),
            limits: Limits::default(),
            discard_unpacked_layers: false,
            meter: None,
            writes: None,
        }
    }
}

/// An image that is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:` and the digest of the configuration: the reference that never changes.
    pub id: String,
    /// Normalised names with tags, sorted.
    pub repo_tags: Vec<String>,
    /// Normalised names with the digests they were pulled by, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes as they came: manifest, configuration and layers.
    pub size: u64,
    /// The configuration.
    pub config: ImageConfiguration,
    /// The configuration as it is written.
    pub raw_config: Arc<str>,
    /// Whether the kubelet must keep it.
    pub pinned: bool,
    /// The layers as stacks, bottom first.
    pub chain: Vec<ChainId>,
    /// The digests of the unpacked archives, bottom first.
    pub diff_ids: Vec<Digest>,
    /// The manifest.
    pub manifest: Manifest,
    /// What points to the manifest.
    pub descriptor: Descriptor,
    /// The index it was chosen from.
    pub index: Option<Descriptor>,
    digest: Digest,
}

/// Whom an image's processes run as, as the CRI tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// The number, when the configuration has one.
    pub uid: Option<i64>,
    /// The name, when it has that.
    pub username: String,
}

impl Image {
    /// Puts an image together from its manifest, whose configuration `fetch` brings.
    pub(crate) fn read<E: From<manifest::Error>>(
        descriptor: Descriptor,
        bytes: &[u8],
        fetch: impl FnOnce(&Descriptor) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let manifest = match manifest::read(bytes, &descriptor.media_type)? {
            manifest::Document::Manifest(manifest) => manifest,
            manifest::Document::Index(_) => {
                return Err(manifest::Error::MediaType(descriptor.media_type).into());
            }
        };
        let raw = fetch(&manifest.config)?;
        Self::assemble(descriptor, manifest, &raw).map_err(E::from)
    }

    pub(crate) fn assemble(
        descriptor: Descriptor,
        manifest: Manifest,
        raw: &[u8],
    ) -> Result<Self, manifest::Error> {
        let (config, diff_ids, chain) = manifest::read_config(raw, manifest.layers.len())?;
        // A manifest may claim any size.
        let sizes = manifest.layers.iter().map(|layer| layer.size).chain([manifest.config.size]);
        let size = sizes.fold(descriptor.size, u64::saturating_add);
        Ok(Self {
            id: manifest.config.digest.to_string(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size,
            config,
            raw_config: String::from_utf8_lossy(raw).into(),
            pinned: false,
            chain,
            diff_ids,
            digest: manifest.config.digest,
            manifest,
            descriptor,
            index: None,
        })
    }

    /// The id as a digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whom its processes run as: a group after a colon is not part of it.
    pub fn user(&self) -> ImageUser {
        let user = self.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
        let name = user.split(':').next().unwrap_or_default();
        match name.parse::<i64>() {
            Ok(uid) if uid >= 0 => ImageUser { uid: Some(uid), username: String::new() },
            _ => ImageUser { uid: None, username: name.to_owned() },
        }
    }
}

/// What images take of their file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// When this was, in nanoseconds since 1970.
    pub timestamp: i64,
    /// A directory on the file system.
    pub mountpoint: PathBuf,
    /// Bytes of layers and content.
    pub used_bytes: u64,
    /// Inodes of both.
    pub inodes_used: u64,
}

/// The images of this machine. A handle: clones are the same images.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    keeper: Keeper,
    registry: Registry,
    options: Options,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("root", &self.0.options.root).finish_non_exhaustive()
    }
}

impl Images {
    /// Opens what is kept below the root, or makes it. Blocking, but reads only names and small records.
    pub fn open(options: Options) -> Result<Self, Error> {
        let store = Arc::new(Store::open(&options)?);
        let keeper = Keeper::start(&store)?;
        let registry =
            Registry::new(options.config_path.clone(), options.progress_timeout, options.meter.clone());
        // What an earlier life did not get to sync.
        keeper.ask(Task::Sync);
        Ok(Self(Arc::new(Inner { store, keeper, registry, options })))
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.0.store.images()
    }

    /// The image of a reference, an id (with or without `sha256:`), or the beginning of one that is not ambiguous.
    pub fn get(&self, name: &str) -> Option<Arc<Image>> {
        let store = &self.0.store;
        if let Ok(id) = name.parse::<Digest>() {
            return store.image(&id);
        }
        if let Ok(id) = format!("sha256:{name}").parse::<Digest>()
            && let Some(image) = store.image(&id)
        {
            return Some(image);
        }
        if let Ok(reference) = name.parse::<Reference>()
            && let Some(image) = store.named(&reference.to_string())
        {
            return Some(image);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let hex =
            (4..64).contains(&prefix.len()) && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex { store.prefixed(prefix) } else { None }
    }

    /// Removes the image that `name` means, with all its references (CRI `RemoveImage`). One that is not there is
    /// removed. What containers use of it stays until they let go.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(image) = self.get(name) else { return Ok(()) };
        let store = Arc::clone(&self.0.store);
        error::blocking(move || {
            store.delete(&image.digest())?;
            for error in store.sweep().errors {
                tracing::warn!(error = %Chain(&error), image = image.id, "removing an image");
            }
            Ok(())
        })
        .await
    }

    /// What images take. Counted as things come and go, so this costs next to nothing.
    pub fn fs_info(&self) -> FsInfo {
        let (used_bytes, inodes_used) = self.0.store.usage();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        FsInfo {
            timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            mountpoint: self.0.store.layers_directory.clone(),
            used_bytes,
            inodes_used,
        }
    }

    /// The directories of an image's layers, the top one first, as overlayfs' `lowerdir` wants them.
    ///
    /// Layers that did not survive a power loss are made again first. Take a [`Images::hold`] before: without one the
    /// directories may go with the image.
    pub async fn lower_dirs(&self, image: &Image) -> Result<Vec<PathBuf>, Error> {
        if image.chain.iter().any(|chain| !self.0.store.has_layer(chain)) {
            self.rebuild(image).await?;
        }
        self.chain_dirs(&image.chain).ok_or_else(|| Error::LayersGone(image.id.clone()))
    }

    /// The bounds of a layer.
    pub(crate) fn limits(&self) -> Limits {
        self.0.options.limits
    }

    /// The directories of these layers (bottom first, as in [`Image::chain`]), the top one first. `None` when one is
    /// not there.
    pub fn chain_dirs(&self, chain: &[ChainId]) -> Option<Vec<PathBuf>> {
        chain.iter().rev().map(|chain| self.0.store.layer_path(chain)).collect()
    }

    /// Keeps an image's layers while the hold lives, even when the image is removed.
    pub fn hold(&self, image: &Image) -> LayerHold {
        self.hold_chains(&image.chain)
    }

    /// Keeps these layers: how containers of an earlier life take their holds again.
    pub fn hold_chains(&self, chain: &[ChainId]) -> LayerHold {
        LayerHold::new(Arc::clone(&self.0.store), self.0.keeper.clone(), chain.to_vec(), Vec::new())
    }

    /// Removes what no image, no hold and no pull needs. The first call says that all holds of an earlier life were taken
    /// again; until then nothing is removed.
    pub async fn sweep(&self) -> Result<SweepReport, Error> {
        let store = Arc::clone(&self.0.store);
        error::blocking(move || {
            store.set_recovered();
            Ok(store.sweep())
        })
        .await
    }
}
