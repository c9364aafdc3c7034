//! `index.json`: which images there are, in the form every OCI tool reads.
//!
//! One descriptor for each tag, or a single one without a name for an image that has none. What the format has no word for
//! is in annotations of our own.

use crate::image::error::Chain;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Error, State, Store, names, write_whole};
use crate::image::Image;
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Index, MANIFEST_LIMIT, OCI_INDEX};

/// The name of an image in a layout (OCI image-spec, annotations.md).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const REPO_DIGESTS: &str = "dev.berth.repo-digests";
/// The index that the manifest was chosen from, kept beside it.
const CHOSEN_FROM: &str = "dev.berth.index";

/// The content of the file `oci-layout`.
pub(crate) const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

#[derive(Default, Serialize, Deserialize)]
struct Chosen {
    media_type: String,
    digest: Option<Digest>,
    size: u64,
}

impl Store {
    pub(super) fn save_index(&self, images: &BTreeMap<Digest, Arc<Image>>) -> Result<(), Error> {
        let mut manifests = Vec::new();
        for image in images.values() {
            let mut descriptor = image.descriptor.clone();
            descriptor.annotations.clear();
            descriptor.annotations.insert(REPO_DIGESTS.to_owned(), image.repo_digests.join(","));
            if let Some(index) = &image.index {
                let chosen = Chosen {
                    media_type: index.media_type.clone(),
                    digest: Some(index.digest),
                    size: index.size,
                };
                let text = serde_json::to_string(&chosen).unwrap_or_default();
                descriptor.annotations.insert(CHOSEN_FROM.to_owned(), text);
            }
            if image.repo_tags.is_empty() {
                manifests.push(descriptor);
                continue;
            }
            for tag in &image.repo_tags {
                let mut named = descriptor.clone();
                named.annotations.insert(REF_NAME.to_owned(), tag.clone());
                manifests.push(named);
            }
        }
        let index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests };
        let path = self.images_directory.join("index.json");
        let bytes =
            serde_json::to_vec(&index).map_err(|source| Error::Index { path: path.clone(), source })?;
        self.timed("images", &path, || write_whole(&path, &bytes, true))
    }

    /// Reads the index. An image whose manifest or configuration is missing or damaged is left out with a warning: it
    /// is pulled again when it is needed, and does not keep the daemon from starting.
    pub(super) fn load_index(&self, state: &mut State) -> Result<(), Error> {
        let layout = self.images_directory.join("oci-layout");
        if !layout.exists() {
            write_whole(&layout, LAYOUT.as_bytes(), false)?;
        }
        let path = self.images_directory.join("index.json");
        let index: Index = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let empty = BTreeMap::new();
                return self.save_index(&empty);
            }
            Err(error) => return Err(Error::io("reading", &path)(error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Index { path, source })?,
        };
        for descriptor in index.manifests {
            let image = match self.load_image(&descriptor) {
                Ok(image) => image,
                Err(error) => {
                    tracing::warn!(manifest = %descriptor.digest, error = %Chain(&error), "an image in the store is left out");
                    // What turned out damaged was removed on the way.
                    state.blobs.retain(|digest, _| self.blob_path(digest).exists());
                    continue;
                }
            };
            // A layer that can be neither used nor made again: the image has to be pulled again.
            let lost = image.chain.iter().zip(&image.manifest.layers).any(|(chain, layer)| {
                !state.layers.contains_key(chain) && state.blobs.get(&layer.digest) != Some(&layer.size)
            });
            if lost {
                tracing::warn!(image = %image.id, "an image in the store is left out: layers are missing");
                continue;
            }
            match state.images.get_mut(&image.digest()) {
                None => {
                    state.images.insert(image.digest(), Arc::new(image));
                }
                Some(known) => {
                    let mut merged = Image::clone(known);
                    merged.repo_tags.extend(image.repo_tags);
                    merged.pinned = self.is_pinned(&merged);
                    *known = Arc::new(merged);
                }
            }
        }
        state.names = names(&state.images);
        Ok(())
    }

    fn load_image(&self, entry: &Descriptor) -> Result<Image, Error> {
        let manifest = self.read_blob(&entry.digest, MANIFEST_LIMIT)?;
        let mut descriptor = entry.clone();
        let mut annotations = std::mem::take(&mut descriptor.annotations);
        let chosen: Chosen = annotations
            .remove(CHOSEN_FROM)
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let index = chosen.digest.map(|digest| Descriptor {
            media_type: chosen.media_type,
            digest,
            size: chosen.size,
            ..Descriptor::default()
        });
        let mut image =
            Image::read(descriptor, &manifest, |config| self.read_blob(&config.digest, MANIFEST_LIMIT))?;
        image.index = index;
        image.repo_tags.extend(annotations.remove(REF_NAME));
        let digests = annotations.remove(REPO_DIGESTS).unwrap_or_default();
        image.repo_digests = digests.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect();
        image.pinned = self.is_pinned(&image);
        Ok(image)
    }
}
