//! What each image takes of the disk, and what would come free without those that nothing uses.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::digest::{ChainId, Digest};
use super::store::Store;
use super::{Image, Images};

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// As in [`Image::id`].
    pub id: String,
    /// Bytes of its layers and content.
    pub bytes: u64,
    /// Those of them that no other image shares.
    pub unique_bytes: u64,
    /// Containers hold it.
    pub in_use: bool,
    /// It is never removed to make room.
    pub pinned: bool,
}

/// What all images take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each image, by id.
    pub images: Vec<ImageUsage>,
    /// Bytes of all layers and content, what is on its way out among them.
    pub bytes: u64,
    /// Bytes that would come free if every image went that is neither in use nor pinned.
    pub reclaimable_bytes: u64,
}

/// A thing on disk that images share.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Layer(ChainId),
    Blob(Digest),
}

impl Images {
    /// What images take, those of `used` (ids) being in use. Reads what is known; never waits.
    pub fn usage(&self, used: &HashSet<String>) -> Usage {
        let store: &Store = &self.0.store;
        // Before the look at the rest: both take the same lock.
        let bytes = self.fs_info().used_bytes;
        store.weigh(|images, layers, blobs, held| {
            let size = |part: &Part| match part {
                Part::Layer(chain) => layers(chain),
                Part::Blob(digest) => blobs(digest),
            };
            let mut owners: HashMap<Part, usize> = HashMap::new();
            for image in images {
                for part in parts(image) {
                    *owners.entry(part).or_default() += 1;
                }
            }
            let mut kept: HashSet<Part> = HashSet::new();
            let mut usage = Usage { bytes, ..Usage::default() };
            for image in images {
                let parts = parts(image);
                // Not by layers: images that are the same but for their configuration have the same.
                let in_use = used.contains(&image.id);
                if in_use || image.pinned {
                    kept.extend(&parts);
                }
                let unique = parts.iter().filter(|part| owners.get(part) == Some(&1));
                usage.images.push(ImageUsage {
                    id: image.id.clone(),
                    bytes: parts.iter().map(size).sum(),
                    unique_bytes: unique.map(size).sum(),
                    in_use,
                    pinned: image.pinned,
                });
            }
            // A layer of a removed image may still be under a container.
            let free = owners.keys().filter(|part| !kept.contains(part)).filter(|part| match part {
                Part::Layer(chain) => !held(chain),
                Part::Blob(_) => true,
            });
            usage.reclaimable_bytes = free.map(size).sum();
            usage
        })
    }
}

fn parts(image: &Image) -> Vec<Part> {
    let layers = image.chain.iter().map(|chain| Part::Layer(*chain));
    let content = super::pull::content(&image.descriptor, &image.manifest);
    let index = image.index.iter().map(|index| index.digest);
    let blobs: BTreeSet<Digest> = content.into_iter().chain(index).collect();
    layers.chain(blobs.into_iter().map(Part::Blob)).collect()
}
