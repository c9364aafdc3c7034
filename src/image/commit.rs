//! A container's writable layer as a new image: the image it came from, and one more layer.
//!
//! The layer is packed, compressed and hashed in one pass, and then goes the way of every layer that comes in: it is unpacked
//! beside its stack and verified, so that what was committed is known to be usable. The container runs on meanwhile: each file
//! is read as it is at that moment.

mod change;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::blocking;
use super::hold::LayerHold;
use super::manifest::{self, Descriptor, Document, Manifest};
use super::pack::{self, Bounds};
use super::reference::Target;
use super::{Digest, Error, Image, Images, Limits, Reference};

/// How a layer of ours is packed.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Longest author or message.
const LONGEST: usize = 4096;

/// What becomes an image.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// Id of the image below.
    pub base: String,
    /// The directory that an overlay wrote to.
    pub upper: PathBuf,
    /// The new image's name.
    pub reference: String,
    /// Instructions that change its configuration, as in `CMD ["sh"]`.
    pub changes: Vec<String>,
    /// Who made it.
    pub author: String,
    /// What was done.
    pub message: String,
}

/// Says stop when the work is given up.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A packed layer in the store.
struct Packed {
    descriptor: Descriptor,
    diff_id: Digest,
}

impl Images {
    /// Makes an image of an image and a writable layer. Dropping the future stops the work.
    pub async fn commit_layer(&self, request: CommitRequest) -> Result<Arc<Image>, Error> {
        let reference: Reference = request.reference.parse()?;
        if let Target::Digest(_) = reference.target() {
            let problem = "a digest names what it names: give a tag";
            return Err(Error::Name { reference: request.reference, doing: "made an image's name", problem });
        }
        for (what, text) in [("author", &request.author), ("message", &request.message)] {
            if text.len() > LONGEST {
                return Err(Error::Change { text: what.to_owned(), problem: "it is longer than 4096 bytes" });
            }
        }
        let base = self.get(&request.base).ok_or_else(|| Error::NotFound(request.base.clone()))?;
        let mut config = configuration(&base)?;
        for text in &request.changes {
            change::apply(&mut config, text)?;
        }
        let _base = self.hold(&base);
        let stop = StopOnDrop(Arc::default());
        let (images, flag, limits) = (self.clone(), Arc::clone(&stop.0), self.0.options.limits);
        let upper = request.upper.clone();
        // What no image names yet is held without a gap: a sweep may come at any moment.
        let (packed, _layer) = blocking(move || {
            let root = pack::open(&upper)?;
            layer(&images, root, limits, &flag)
        })
        .await?;
        let (image, _documents) = self.put_together(&base, config, &request, &packed).await?;
        let _hold = self.hold(&image);
        self.layers(&image, None, None).await?;
        let mut image = image;
        image.repo_tags.push(reference.to_string());
        let image = self.commit(image).await?;
        drop(stop);
        Ok(image)
    }

    async fn put_together(
        &self,
        base: &Image,
        mut config: Map<String, Value>,
        request: &CommitRequest,
        packed: &Packed,
    ) -> Result<(Image, LayerHold), Error> {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut step = json!({"created": now, "created_by": "berth commit"});
        for (key, text) in [("author", &request.author), ("comment", &request.message)] {
            if !text.is_empty() {
                step[key] = json!(text);
            }
        }
        if !request.author.is_empty() {
            config.insert("author".to_owned(), json!(request.author));
        }
        config.insert("created".to_owned(), json!(now));
        let history = config.entry("history").or_insert_with(|| json!([]));
        match history.as_array_mut() {
            Some(history) => history.push(step),
            None => *history = json!([step]),
        }
        let mut diff_ids: Vec<String> = base.diff_ids.iter().map(ToString::to_string).collect();
        diff_ids.push(packed.diff_id.to_string());
        config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));

        let raw = Value::Object(config).to_string().into_bytes();
        let mut layers = base.manifest.layers.clone();
        for layer in &mut layers {
            layer.media_type = oci(&layer.media_type).to_owned();
        }
        layers.push(packed.descriptor.clone());
        let manifest =
            Manifest { config: Descriptor::of(manifest::OCI_CONFIG, &raw), layers, checkpoint: false };
        let mut document = json!({"schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST});
        if let (Some(document), Ok(Value::Object(inner))) =
            (document.as_object_mut(), serde_json::to_value(&manifest))
        {
            document.extend(inner);
        }
        let bytes = document.to_string().into_bytes();
        // The same bounds as for any other manifest: the number of layers among them.
        let Document::Manifest(manifest) = manifest::read(&bytes, manifest::OCI_MANIFEST)? else {
            return Err(manifest::Error::MediaType(manifest::OCI_MANIFEST.to_owned()).into());
        };
        let descriptor = Descriptor::of(manifest::OCI_MANIFEST, &bytes);
        let image = Image::assemble(descriptor, manifest, &raw)?;
        let documents = self.pin(vec![image.descriptor.digest, image.manifest.config.digest]);
        self.keep(raw).await?;
        self.keep(bytes).await?;
        Ok((image, documents))
    }
}

/// The image's configuration, without what Docker keeps there of the container that it was made in.
fn configuration(image: &Image) -> Result<Map<String, Value>, Error> {
    let mut config: Map<String, Value> = serde_json::from_str(&image.raw_config)
        .map_err(|source| manifest::Error::Json { what: "the image configuration", source })?;
    config.remove("container");
    config.remove("container_config");
    if !config.get("config").is_some_and(Value::is_object) {
        config.insert("config".to_owned(), json!({}));
    }
    Ok(config)
}

/// OCI's word for what Docker's manifests call a layer: one manifest speaks one language.
fn oci(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
        }
        other => other,
    }
}

/// Packs a layer into the store, and holds it there. Blocking.
fn layer(
    images: &Images,
    root: OwnedFd,
    limits: Limits,
    stop: &AtomicBool,
) -> Result<(Packed, LayerHold), Error> {
    let store = &images.0.store;
    let mut ingest = store.ingest_unknown()?;
    let bounds = Bounds {
        overlay: true,
        entries: limits.layer_entries,
        bytes: limits.layer_bytes,
        stop,
        owners: None,
    };
    let packed = write(root, |bytes| ingest.write(bytes), bounds);
    let packed = packed.and_then(|packed| {
        let hold = images.pin(vec![packed.descriptor.digest]);
        store.publish_blob(&ingest.path, &packed.descriptor.digest, packed.descriptor.size)?;
        Ok((packed, hold))
    });
    if packed.is_err() {
        ingest.remove();
    }
    packed
}

fn write(
    root: OwnedFd,
    sink: impl FnMut(&[u8]) -> io::Result<()>,
    bounds: Bounds<'_>,
) -> Result<Packed, Error> {
    let outer = Hashed::new(Sink(sink));
    let inner = Hashed::new(GzEncoder::new(outer, Compression::fast()));
    let inner = pack::directory(root, inner, bounds)?;
    let (encoder, diff_id, _) = inner.end();
    let outer = encoder.finish().map_err(pack::Error::Write)?;
    let (_, digest, size) = outer.end();
    let descriptor = Descriptor { media_type: LAYER.to_owned(), digest, size, ..Descriptor::default() };
    Ok(Packed { descriptor, diff_id })
}

struct Sink<F>(F);

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Sink<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes and counts what goes through.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), size: 0 }
    }

    fn end(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hasher(self.hasher), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
