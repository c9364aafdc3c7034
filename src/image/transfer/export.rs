//! Images to an archive that OCI tools and `docker load` both read.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use super::{BUFFER, DockerImage, Error};
use crate::image::digest::Digest;
use crate::image::error::blocking;
use crate::image::hold::LayerHold;
use crate::image::manifest::{Descriptor, Index, OCI_INDEX};
use crate::image::pull::content;
use crate::image::store::index::{LAYOUT, REF_NAME};
use crate::image::store::{self, Store};
use crate::image::{Image, Images, Reference};

/// Where containerd and Docker look for an image's full name.
const FULL_NAME: &str = "io.containerd.image.name";

impl Images {
    /// Writes images into one tar archive. A name that is a tag goes along; an image asked for by id or digest goes with
    /// all its tags. The writer is shut down at the end.
    pub async fn export(
        &self,
        names: &[String],
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(), crate::image::Error> {
        let mut chosen = Vec::new();
        let mut pins: Vec<LayerHold> = Vec::new();
        for name in names {
            let image = self.get(name).ok_or_else(|| crate::image::Error::NotFound(name.clone()))?;
            let full = name.parse::<Reference>().map(|reference| reference.to_string());
            let tags = match full {
                Ok(full) if image.repo_tags.contains(&full) => vec![full],
                _ => image.repo_tags.clone(),
            };
            pins.push(self.pin(content(&image.descriptor, &image.manifest)));
            chosen.push((image, tags));
        }
        let store = Arc::clone(&self.0.store);
        let mut writer = SyncIoBridge::new(writer);
        blocking(move || {
            let _pins = pins;
            write(&store, &chosen, &mut writer)?;
            writer.shutdown().map_err(writing)?;
            Ok(())
        })
        .await
    }
}

fn write(
    store: &Store,
    images: &[(Arc<Image>, Vec<String>)],
    writer: &mut impl Write,
) -> Result<(), crate::image::Error> {
    let mut index = Index { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests: Vec::new() };
    let mut docker = Vec::new();
    for (image, tags) in images {
        let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        docker.push(DockerImage {
            config: blob(&image.manifest.config.digest),
            repo_tags: Some(tags.clone()),
            layers: image.manifest.layers.iter().map(|layer| blob(&layer.digest)).collect(),
        });
        let bare = Descriptor { annotations: std::collections::BTreeMap::new(), ..image.descriptor.clone() };
        if tags.is_empty() {
            index.manifests.push(bare.clone());
        }
        for tag in tags {
            let mut named = bare.clone();
            named.annotations.insert(FULL_NAME.to_owned(), tag.clone());
            named.annotations.insert(REF_NAME.to_owned(), tag.clone());
            index.manifests.push(named);
        }
    }
    let json = |source| Error::Json { name: "index.json".to_owned(), source };
    small(writer, "oci-layout", LAYOUT.as_bytes())?;
    small(writer, "index.json", &serde_json::to_vec(&index).map_err(json)?)?;
    small(writer, "manifest.json", &serde_json::to_vec(&docker).map_err(json)?)?;
    let mut written = HashSet::new();
    for (image, _) in images {
        for digest in content(&image.descriptor, &image.manifest) {
            if written.insert(digest) {
                copy(store, writer, digest)?;
            }
        }
    }
    // Two blocks of zeros end an archive.
    writer.write_all(&[0; 1024]).map_err(writing)?;
    Ok(())
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { what: "writing", source }
}

fn header(writer: &mut impl Write, name: &str, size: u64) -> Result<(), Error> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).map_err(writing)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    writer.write_all(header.as_bytes()).map_err(writing)
}

fn pad(writer: &mut impl Write, size: u64) -> Result<(), Error> {
    let padding = usize::try_from((512 - size % 512) % 512).unwrap_or(0);
    writer.write_all([0; 512].get(..padding).unwrap_or_default()).map_err(writing)
}

fn small(writer: &mut impl Write, name: &str, bytes: &[u8]) -> Result<(), Error> {
    header(writer, name, bytes.len() as u64)?;
    writer.write_all(bytes).map_err(writing)?;
    pad(writer, bytes.len() as u64)
}

/// Content, held against its digest as it goes.
fn copy(store: &Store, writer: &mut impl Write, digest: Digest) -> Result<(), crate::image::Error> {
    let mut file = store.open_blob(&digest)?;
    let size = file.metadata().map_err(writing)?.len();
    header(writer, &format!("blobs/sha256/{}", digest.hex()), size)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut left = size;
    while left > 0 {
        let count = file.read(&mut buffer).map_err(writing)?;
        if count == 0 {
            return Err(store::Error::Damaged(digest).into());
        }
        let piece = buffer.get(..count).unwrap_or_default();
        hasher.update(piece);
        writer.write_all(piece).map_err(writing)?;
        left = left.saturating_sub(count as u64);
    }
    if Digest::from_hasher(hasher) != digest {
        store.drop_blob(&digest);
        return Err(store::Error::Damaged(digest).into());
    }
    pad(writer, size)?;
    Ok(())
}
