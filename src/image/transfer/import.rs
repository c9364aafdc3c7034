//! Archive to images.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::collect::Collected;
use super::{DockerImage, Error};
use crate::image::digest::Digest;
use crate::image::error::blocking;
use crate::image::hold::LayerHold;
use crate::image::manifest::{self, Descriptor, Document, Index, MANIFEST_LIMIT, Manifest};
use crate::image::pull::content;
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::image::store::index::REF_NAME;
use crate::image::{Image, Images, Platform};

/// Where containerd and Docker write an image's full name.
const FULL_NAME: &str = "io.containerd.image.name";
/// Most images of an archive.
const IMAGES_LIMIT: usize = 1024;

/// Images of an archive whose layers are not unpacked yet, and what keeps their content from being swept.
type Found = (Vec<Image>, Vec<LayerHold>);

impl Images {
    /// Takes in an archive: an OCI layout or what `docker save` wrote, packed or not. Returns its images for this
    /// machine. Dropping the future stops the work.
    pub async fn import(
        &self,
        reader: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<Vec<Arc<Image>>, crate::image::Error> {
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let reader = Stoppable { inner: SyncIoBridge::new(reader), stop: Arc::clone(&stop.0) };
        let images = self.clone();
        let (found, _pins) = blocking(move || {
            let mut collected = Collected::read(&images.0.store, reader, images.0.options.limits)?;
            images.find(&mut collected)
        })
        .await?;
        let mut done = Vec::with_capacity(found.len());
        for image in found {
            let _hold = self.hold(&image);
            self.layers(&image, None, None).await?;
            done.push(self.commit(image).await?);
        }
        drop(stop);
        Ok(done)
    }

    fn find(&self, collected: &mut Collected) -> Result<Found, crate::image::Error> {
        let store = &self.0.store;
        let docker: Vec<DockerImage> = match collected.look("manifest.json") {
            Ok(_) => json(store, collected, "manifest.json")?,
            Err(_) => Vec::new(),
        };
        let mut found = (Vec::new(), Vec::new());
        if collected.look("index.json").is_ok() {
            let index: Index = json(store, collected, "index.json")?;
            let tags = docker_tags(collected, &docker);
            for descriptor in index.manifests.iter().take(IMAGES_LIMIT) {
                self.of_layout(collected, descriptor, &tags, &mut found)?;
            }
        } else {
            for image in docker.iter().take(IMAGES_LIMIT) {
                self.of_docker(collected, image, &mut found)?;
            }
        }
        match found.0.is_empty() {
            true => Err(Error::NoImage("no image in it is made for this machine").into()),
            false => Ok(found),
        }
    }

    fn of_layout(
        &self,
        collected: &mut Collected,
        top: &Descriptor,
        tags: &HashMap<Digest, Vec<String>>,
        found: &mut Found,
    ) -> Result<(), crate::image::Error> {
        let store = &self.0.store;
        // A layout may list the platforms of an image side by side, under one name: only one of them is ours.
        let told =
            top.platform.as_ref().is_some_and(|told| !told.os.is_empty() && !told.architecture.is_empty());
        if told && Platform::default().choose(std::slice::from_ref(top)).is_none() {
            return Ok(());
        }
        let mut descriptor = top.clone();
        for _ in 0..3 {
            let bytes = collected.bytes(store, &blob(&descriptor.digest), MANIFEST_LIMIT + 1)?;
            match manifest::read(&bytes, &descriptor.media_type)? {
                Document::Manifest(manifest) => {
                    let mut image = self.assemble(collected, descriptor, manifest, None, found)?;
                    image.repo_tags = names(top, tags.get(&image.digest()));
                    found.0.push(image);
                    return Ok(());
                }
                Document::Index(index) => match Platform::default().choose(&index.manifests) {
                    Some(chosen) => descriptor = chosen.clone(),
                    // Not for this machine: other images of the archive may be.
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }

    fn of_docker(
        &self,
        collected: &mut Collected,
        docker: &DockerImage,
        found: &mut Found,
    ) -> Result<(), crate::image::Error> {
        let store = &self.0.store;
        let (digest, size) = collected.look(&docker.config)?;
        let config =
            Descriptor { media_type: manifest::OCI_CONFIG.to_owned(), digest, size, ..Descriptor::default() };
        let mut layers = Vec::with_capacity(docker.layers.len());
        for name in &docker.layers {
            let (digest, size) = collected.look(name)?;
            let start = collected.bytes(store, name, 4)?;
            let media_type = layer_type(&start).to_owned();
            layers.push(Descriptor { media_type, digest, size, ..Descriptor::default() });
        }
        let manifest = Manifest { config, layers, checkpoint: false };
        let mut document = serde_json::json!({"schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST});
        let inner = serde_json::to_value(&manifest)
            .map_err(|source| Error::Json { name: "manifest.json".to_owned(), source })?;
        if let (Some(document), serde_json::Value::Object(inner)) = (document.as_object_mut(), inner) {
            document.extend(inner);
        }
        let bytes = document.to_string().into_bytes();
        let descriptor = Descriptor::of(manifest::OCI_MANIFEST, &bytes);
        // The same bounds as for any other manifest.
        let Document::Manifest(manifest) = manifest::read(&bytes, manifest::OCI_MANIFEST)? else {
            return Ok(());
        };
        let mut image = self.assemble(collected, descriptor, manifest, Some((&bytes, docker)), found)?;
        image.repo_tags = parsed(docker.repo_tags.iter().flatten());
        found.0.push(image);
        Ok(())
    }

    /// Makes an image's content visible and puts it together.
    fn assemble(
        &self,
        collected: &mut Collected,
        descriptor: Descriptor,
        manifest: Manifest,
        docker: Option<(&[u8], &DockerImage)>,
        found: &mut Found,
    ) -> Result<Image, crate::image::Error> {
        let store = &self.0.store;
        found.1.push(self.pin(content(&descriptor, &manifest)));
        let mut files = Vec::new();
        match docker {
            Some((bytes, docker)) => {
                store.write_blob(bytes)?;
                files.push(docker.config.clone());
                files.extend(docker.layers.iter().cloned());
            }
            None => {
                files.extend(content(&descriptor, &manifest).iter().map(blob));
            }
        }
        for name in &files {
            collected.publish(store, name)?;
        }
        let raw = store.read_blob(&manifest.config.digest, MANIFEST_LIMIT)?;
        let descriptor = Descriptor { annotations: std::collections::BTreeMap::new(), ..descriptor };
        Ok(Image::assemble(descriptor, manifest, &raw)?)
    }
}

fn json<T: DeserializeOwned>(
    store: &Store,
    collected: &Collected,
    name: &str,
) -> Result<T, crate::image::Error> {
    let bytes = collected.bytes(store, name, MANIFEST_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { name: name.to_owned(), source }.into())
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Docker's names by the configuration they belong to.
fn docker_tags(collected: &Collected, docker: &[DockerImage]) -> HashMap<Digest, Vec<String>> {
    docker
        .iter()
        .filter_map(|image| {
            let (digest, _) = collected.look(&image.config).ok()?;
            Some((digest, image.repo_tags.clone().unwrap_or_default()))
        })
        .collect()
}

/// The names an entry of a layout gives its image. A bare tag names no repository, so it is none.
fn names(descriptor: &Descriptor, docker: Option<&Vec<String>>) -> Vec<String> {
    let full = descriptor.annotations.get(FULL_NAME);
    let short = descriptor.annotations.get(REF_NAME).filter(|name| name.contains(['/', ':']));
    parsed(full.or(short).into_iter().chain(docker.into_iter().flatten()))
}

fn parsed<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names
        .into_iter()
        .filter_map(|name| name.parse::<Reference>().ok())
        .filter(|reference| matches!(reference.target(), crate::image::reference::Target::Tag(_)))
        .map(|reference| reference.to_string())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn layer_type(start: &[u8]) -> &'static str {
    match start {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    }
}

/// Says stop when the import is given up.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A reader that ends with an error when nobody waits any more.
struct Stoppable<R> {
    inner: R,
    stop: Arc<AtomicBool>,
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(crate::image::unpack::Error::Aborted));
        }
        self.inner.read(buffer)
    }
}
