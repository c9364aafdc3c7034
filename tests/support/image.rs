//! Makes OCI images in memory: from Debian's static busybox, or from any bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Bytes under their digest.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self { media_type: media_type.to_owned(), digest: sha256(&bytes), bytes }
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// `sha256:<hex>`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer under construction: a tar stream.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    pub(crate) fn file(mut self, path: &str, mode: u32, bytes: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len());
        self.0.append_data(&mut header, path, bytes).unwrap();
        self
    }

    pub(crate) fn owned_file(mut self, path: &str, mode: u32, uid: u64, gid: u64, bytes: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, mode, bytes.len());
        header.set_uid(uid);
        header.set_gid(gid);
        self.0.append_data(&mut header, path, bytes).unwrap();
        self
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub(crate) fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// An entry whose name is written as given, whatever a sane library thinks of it.
    pub(crate) fn raw(
        mut self,
        kind: tar::EntryType,
        name: &[u8],
        link: Option<&[u8]>,
        bytes: &[u8],
    ) -> Self {
        let mut header = header(kind, 0o644, bytes.len());
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        if let Some(link) = link {
            old.linkname[..link.len()].copy_from_slice(link);
        }
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size.try_into().unwrap());
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// An image: manifest, config and layers.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    config: Value,
    layers: Vec<Blob>,
    docker: bool,
    annotations: BTreeMap<String, String>,
}

impl Image {
    /// An image without layers, with this `config` section (as in an image configuration's `config`).
    pub(crate) fn new(config: Value) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            config: json!({
                "created": "2024-01-01T00:00:00Z", "architecture": architecture, "os": "linux",
                "config": config, "rootfs": {"type": "layers", "diff_ids": []}
            }),
            layers: Vec::new(),
            docker: false,
            annotations: BTreeMap::new(),
        }
    }

    /// Busybox with users, a web page and the usual directories, and this `config`.
    pub(crate) fn busybox(config: Value) -> Self {
        let mut config = config;
        if config.get("Env").is_none() {
            config["Env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        }
        Self::new(config).layer_blob(busybox_layer().clone())
    }

    /// Writes another architecture into the configuration.
    pub(crate) fn architecture(mut self, architecture: &str) -> Self {
        self.config["architecture"] = json!(architecture);
        self
    }

    /// Uses Docker's media types (schema 2).
    pub(crate) fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Adds an annotation to the manifest.
    pub(crate) fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a layer whose archive is there already.
    pub(crate) fn archive(self, tar: &[u8]) -> Self {
        self.layer_blob(pack(tar, Packing::Gzip))
    }

    /// Adds a layer.
    pub(crate) fn layer(self, layer: Layer, packing: Packing) -> Self {
        self.layer_blob(pack(&layer.tar(), packing))
    }

    fn layer_blob(mut self, (diff_id, blob): (String, Blob)) -> Self {
        self.config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(diff_id));
        self.layers.push(blob);
        self
    }

    pub(crate) fn config_blob(&self) -> Blob {
        let media_type = if self.docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        Blob::new(media_type, serde_json::to_vec(&self.config).unwrap())
    }

    /// The image's id as the CRI shows it: the digest of its configuration.
    pub(crate) fn id(&self) -> String {
        self.config_blob().digest
    }

    pub(crate) fn manifest(&self) -> Blob {
        let media_type = if self.docker {
            "application/vnd.docker.distribution.manifest.v2+json"
        } else {
            "application/vnd.oci.image.manifest.v1+json"
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let mut descriptor = layer.descriptor();
                if self.docker {
                    descriptor["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
                }
                descriptor
            })
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": self.config_blob().descriptor(), "layers": layers
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        Blob::new(media_type, serde_json::to_vec(&manifest).unwrap())
    }

    /// Layers and configuration.
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut blobs = self.layers.clone();
        blobs.push(self.config_blob());
        blobs
    }
}

/// Packs a tar stream; returns its diff id and the blob.
pub(crate) fn pack(tar: &[u8], packing: Packing) -> (String, Blob) {
    let diff_id = sha256(tar);
    let blob = match packing {
        Packing::Plain => Blob::new("application/vnd.oci.image.layer.v1.tar", tar.to_vec()),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).unwrap();
            Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", encoder.finish().unwrap())
        }
        Packing::Zstd => Blob::new(
            "application/vnd.oci.image.layer.v1.tar+zstd",
            zstd::stream::encode_all(tar, 1).unwrap(),
        ),
    };
    (diff_id, blob)
}

/// Bytes that do not compress to nothing and are the same in every run.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half noise, half repetition: about what real layers compress to.
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(&[0x20; 8]);
    }
    bytes.truncate(length);
    bytes
}

/// An image of `megabytes` (compressed size, roughly) in `count` layers above busybox.
pub(crate) fn many_layers(count: usize, megabytes: usize, seed: u64) -> Image {
    let mut image = Image::new(json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
    for number in 0..count {
        let mut layer = Layer::new();
        if number == 0 {
            layer = layer.file("bin/busybox", 0o755, &std::fs::read(busybox_path()).unwrap());
            layer = layer.symlink("bin/sh", "busybox");
        }
        // Files of many sizes, as in real layers: pulls are bound by files as well as by bytes.
        let total = 2 * megabytes * 1_000_000 / count;
        let mut written = 0;
        let mut index = 0;
        while written < total {
            let size = [3_000, 20_000, 90_000, 400_000, 1_500_000][index % 5].min(total - written);
            let bytes = noise(size, seed + u64::try_from(number * 10_000 + index).unwrap());
            layer = layer.file(&format!("data/{number}/{}/{index}", index % 16), 0o644, &bytes);
            written += size;
            index += 1;
        }
        image = image.layer(layer, Packing::Gzip);
    }
    image
}

fn busybox_path() -> &'static str {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .expect("busybox (apt-get install busybox-static)")
}

fn busybox_layer() -> &'static (String, Blob) {
    static LAYER: OnceLock<(String, Blob)> = OnceLock::new();
    LAYER.get_or_init(|| {
        let applets = Command::new(busybox_path()).arg("--list").output().unwrap();
        let mut layer = Layer::new()
            .directory("bin/", 0o755)
            .file("bin/busybox", 0o755, &std::fs::read(busybox_path()).unwrap())
            .directory("etc/", 0o755)
            .file(
                "etc/passwd",
                0o644,
                b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n\
                  nogroup:x:1001:4242::/:/bin/sh\n",
            )
            .file("etc/group", 0o644, b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\nother:x:2001:root\n")
            .directory("root/", 0o700)
            .directory("home/", 0o755)
            .directory("home/web/", 0o755)
            .directory("tmp/", 0o1777)
            .directory("var/", 0o755)
            .directory("proc/", 0o555)
            .directory("sys/", 0o555)
            .directory("dev/", 0o755)
            .directory("www/", 0o755)
            .file("www/index.html", 0o644, b"It works.\n")
            .owned_file("home/web/hello", 0o600, 1000, 1000, b"hello\n")
            .file("bin/not-executable", 0o644, b"#!/bin/sh\n");
        for applet in String::from_utf8_lossy(&applets.stdout).lines() {
            if applet != "busybox" {
                layer = layer.symlink(&format!("bin/{applet}"), "busybox");
            }
        }
        pack(&layer.tar(), Packing::Gzip)
    })
}

impl Image {
    /// Claims that layer `index` has another digest; the content stays.
    pub(crate) fn forge_layer_digest(&mut self, index: usize) {
        self.layers[index].digest = sha256(b"something else");
    }

    /// The content of a layer under a forged digest.
    pub(crate) fn layers_under(&self, digest: &str) -> Option<Vec<u8>> {
        self.layers.iter().find(|layer| layer.digest == digest).map(|layer| layer.bytes.clone())
    }
}
