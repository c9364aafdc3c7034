//! Manifests, indexes and configurations of both families, OCI and Docker schema 2.
//!
//! The two differ by media types only; what is read here is what both have. Docker schema 1 is refused by name.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::digest::{ChainId, Digest};

/// Largest manifest, index or configuration that is read (registries refuse larger manifests themselves).
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Most layers of an image: overlayfs can't stack more (the kernel's OVL_MAX_STACK is 500; Docker keeps to 127).
const LAYERS_LIMIT: usize = 127;
/// Most entries of an index.
const INDEX_LIMIT: usize = 4096;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What is asked for, in the order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// Why a document can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of this shape.
    #[error("{what} is not readable")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// The configuration is not one of a container image.
    #[error("the image configuration is not readable")]
    Config(#[from] oci_spec::OciSpecError),
    /// The old format of Docker 1.9 and before.
    #[error(
        "the manifest is of Docker schema 1, which is not supported: push the image again with a current tool"
    )]
    SchemaOne,
    /// Something else than an image.
    #[error("media type {0:?} is not one of a container image")]
    MediaType(String),
    /// More of something than is reasonable.
    #[error("the {what} has {count} entries, more than {limit}")]
    TooMany {
        /// Which list.
        what: &'static str,
        /// How many are there.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// Larger than [`MANIFEST_LIMIT`].
    #[error("the {what} has {size} bytes, more than {MANIFEST_LIMIT}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size.
        size: u64,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest lists {layers} layers but the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A diff id that is no digest.
    #[error("a diff id of the configuration")]
    DiffId(#[from] super::digest::Error),
}

/// Points to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it is made for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformEntry>,
}

impl Default for Descriptor {
    fn default() -> Self {
        Self {
            media_type: String::new(),
            digest: Digest::of(b""),
            size: 0,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

impl Descriptor {
    /// A descriptor of `bytes`.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            ..Self::default()
        }
    }
}

/// The platform of an index entry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlatformEntry {
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Variant of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// An image manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Whether its annotations say that it holds a container's checkpoint.
    #[serde(default, rename = "annotations", deserialize_with = "holds_checkpoint", skip_serializing)]
    pub checkpoint: bool,
}

/// What says that an image holds a checkpoint: checkpointctl's word, and CRI-O's older one.
const CHECKPOINT: [&str; 2] =
    ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"];

fn holds_checkpoint<'de, D: Deserializer<'de>>(annotations: D) -> Result<bool, D::Error> {
    let annotations = Option::<BTreeMap<String, IgnoredAny>>::deserialize(annotations)?.unwrap_or_default();
    Ok(CHECKPOINT.iter().any(|name| annotations.contains_key(*name)))
}

/// An index of manifests.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// What a registry's manifest address can answer with.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or index. The document's own media type decides, then the one it came with, then its shape.
pub(crate) fn read(bytes: &[u8], content_type: &str) -> Result<Document, Error> {
    let json = |source| Error::Json { what: "the manifest", source };
    let size = bytes.len() as u64;
    if size > MANIFEST_LIMIT {
        return Err(Error::TooLarge { what: "manifest", size });
    }
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    let told = content_type.split(';').next().unwrap_or_default().trim();
    if probe.schema_version == 1 || told.starts_with("application/vnd.docker.distribution.manifest.v1") {
        return Err(Error::SchemaOne);
    }
    let media_type = if probe.media_type.is_empty() { told } else { probe.media_type.as_str() };
    let is_index = match media_type {
        OCI_INDEX | DOCKER_INDEX => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        "" | "application/json" | "application/octet-stream" | "text/plain" => {
            probe.manifests.is_some() && probe.layers.is_none()
        }
        other => return Err(Error::MediaType(other.chars().take(160).collect())),
    };
    if is_index {
        let index: Index = serde_json::from_slice(bytes).map_err(json)?;
        bounded("index", index.manifests.len(), INDEX_LIMIT)?;
        return Ok(Document::Index(index));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
    bounded("list of layers", manifest.layers.len(), LAYERS_LIMIT)?;
    let config = &manifest.config;
    if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "" | "application/octet-stream") {
        return Err(Error::MediaType(config.media_type.chars().take(160).collect()));
    }
    if config.size > MANIFEST_LIMIT {
        return Err(Error::TooLarge { what: "image configuration", size: config.size });
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(Error::MediaType(layer.media_type.chars().take(160).collect()));
    }
    Ok(Document::Manifest(manifest))
}

fn bounded(what: &'static str, count: usize, limit: usize) -> Result<(), Error> {
    if count > limit { Err(Error::TooMany { what, count, limit }) } else { Ok(()) }
}

/// Whether a media type is one of a layer. The packing itself is seen in the first bytes.
fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            | ""
    )
}

/// Reads a configuration and the chain of its layers.
pub(crate) fn read_config(
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>, Vec<ChainId>), Error> {
    let config = ImageConfiguration::from_reader(bytes)?;
    let diff_ids: Vec<Digest> =
        config.rootfs().diff_ids().iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    if diff_ids.len() != layers {
        return Err(Error::LayerCount { layers, diff_ids: diff_ids.len() });
    }
    let chain = ChainId::chain(&diff_ids);
    Ok((config, diff_ids, chain))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn schema_one_and_strangers_are_refused_by_name() {
        let one = br#"{"schemaVersion":1,"name":"a","fsLayers":[]}"#;
        assert!(matches!(read(one, ""), Err(Error::SchemaOne)));
        let helm = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json",
            "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[]}"#;
        assert!(matches!(read(helm, OCI_MANIFEST), Err(Error::MediaType(name)) if name.contains("helm")));
        assert!(matches!(read(b"<html>", "text/html"), Err(Error::Json { .. })));
        let large = vec![b' '; usize::try_from(MANIFEST_LIMIT).unwrap() + 1];
        assert!(matches!(read(&large, OCI_MANIFEST), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_checkpoint_is_known_by_its_annotation() {
        let manifest = |annotations: serde_json::Value| {
            let descriptor = serde_json::json!({"digest": Digest::of(b"x").to_string(), "size": 1});
            let text = serde_json::json!({"config": descriptor, "layers": [], "annotations": annotations});
            serde_json::from_value::<Manifest>(text).unwrap()
        };
        assert!(manifest(serde_json::json!({"org.criu.checkpoint.container.name": "web"})).checkpoint);
        assert!(
            manifest(serde_json::json!({"io.kubernetes.cri-o.annotations.checkpoint.name": "web"}))
                .checkpoint
        );
        for others in [serde_json::json!({"a": "b"}), serde_json::json!({}), serde_json::Value::Null] {
            assert!(!manifest(others).checkpoint);
        }
        let written = serde_json::to_value(manifest(serde_json::json!({"a": "b"}))).unwrap();
        assert!(written.get("annotations").is_none(), "{written}");
    }

    #[test]
    fn an_index_is_known_by_type_or_shape() {
        let bare = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(read(bare, ""), Ok(Document::Index(_))));
        assert!(matches!(
            read(bare, "application/vnd.oci.image.index.v1+json; charset=utf-8"),
            Ok(Document::Index(_))
        ));
    }
}
