//! One pull: resolve, fetch, unpack, commit.
//!
//! The whole pull runs in its caller's future. Concurrent pulls meet at the locks of the store, one for each blob and each chain
//! id: one works, the others wait and find it done. A pull that is dropped lets its locks go, and the next one in line
//! goes on from what was downloaded. Permits for downloads are taken after locks and never held while waiting for one, so
//! two pulls can't wait for each other.

mod feed;
mod layer;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::{Semaphore, mpsc, watch};

use super::error::blocking;
use super::hold::LayerHold;
use super::manifest::{self, Descriptor, Document, MANIFEST_LIMIT, Manifest, PlatformEntry};
use super::reference::Target;
use super::registry::{Purpose, Resolved, Session};
use super::store::Task;
use super::{Credentials, Digest, Error, Image, Images, Platform, Reference};
use crate::meter::Pulls;

pub(crate) use layer::Job;

/// Indexes may hold indexes, but not without end.
const NESTING: usize = 3;

/// What is to be pulled.
#[derive(Clone, Debug, Default)]
pub struct PullRequest {
    /// The image's name, short or full.
    pub reference: String,
    /// What may be shown to the registry.
    pub auth: Option<Credentials>,
    /// For which machine; this one when `None`.
    pub platform: Option<Platform>,
    /// Told of what happens. Steps are left out when nobody reads.
    pub progress: Option<mpsc::Sender<Progress>>,
}

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In line, or somebody else is at it.
    Waiting,
    /// Bytes come, and are unpacked as they do.
    Downloading,
    /// It was at its destination already.
    Exists,
    /// Bytes go to the registry.
    Uploading,
    /// The registry has it from another of its repositories.
    Mounted,
    /// Unpacked and verified, or taken by the registry.
    Done,
}

/// A step of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The layer's content.
    pub layer: Digest,
    /// Where it is.
    pub phase: Phase,
    /// Bytes so far.
    pub current: u64,
    /// All its bytes.
    pub total: u64,
}

impl Images {
    /// Pulls an image and returns it when all its layers are there, unpacked and verified.
    ///
    /// Dropping the future stops the work; what was downloaded is continued by the next pull.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, Error> {
        let pull = self.0.options.meter.as_ref().map(Pulls::begin);
        let pulled = self.pull_unmeasured(request).await;
        if let Some(pull) = pull {
            pull.end(pulled.is_ok());
        }
        pulled
    }

    async fn pull_unmeasured(&self, request: PullRequest) -> Result<Arc<Image>, Error> {
        let reference: Reference = request.reference.parse()?;
        let session = self.session(&reference, request.auth.clone(), Purpose::Pull).await?;
        if let Some(image) = self.unchanged(&reference, &session, request.platform.as_ref()).await {
            image.chain.iter().for_each(|_| self.count_layer(false));
            return Ok(image);
        }
        let platform = request.platform.clone().unwrap_or_default();
        let top = session.resolve().await?;
        let mut pins = vec![self.pin(vec![top.digest])];
        let (descriptor, manifest, index) = self.choose(&session, top, &platform, &mut pins).await?;
        pins.push(self.pin(content(&descriptor, &manifest)));
        let raw = self.config(&session, &manifest.config).await?;
        let mut image = Image::assemble(descriptor, manifest, &raw)?;
        check_platform(&image, &platform)?;
        let _hold = self.hold(&image);
        self.layers(&image, Some(&session), request.progress.as_ref()).await?;
        let by = index.as_ref().map_or(image.descriptor.digest, |index| index.digest);
        image.repo_digests.push(reference.at(by));
        if matches!(reference.target(), Target::Tag(_)) {
            image.repo_tags.push(reference.to_string());
        }
        image.index = index;
        self.commit(image).await
    }

    fn count_layer(&self, fetched: bool) {
        if let Some(meter) = &self.0.options.meter {
            meter.layer(fetched);
        }
    }

    /// Makes an image visible and has its layers reach the disk soon.
    pub(crate) async fn commit(&self, image: Image) -> Result<Arc<Image>, Error> {
        let store = Arc::clone(&self.0.store);
        let image = blocking(move || Ok(store.put(image)?)).await?;
        self.0.keeper.ask(Task::Sync);
        Ok(image)
    }

    pub(super) async fn session(
        &self,
        reference: &Reference,
        auth: Option<Credentials>,
        purpose: Purpose,
    ) -> Result<Session, Error> {
        let (inner, reference) = (Arc::clone(&self.0), reference.clone());
        blocking(move || Ok(inner.registry.session(&reference, auth.as_ref(), purpose)?)).await
    }

    /// The image that is here already, when the registry says that it is still the one. The registry is asked in any case:
    /// whether these credentials may have the image is for it to say.
    async fn unchanged(
        &self,
        reference: &Reference,
        session: &Session,
        platform: Option<&Platform>,
    ) -> Option<Arc<Image>> {
        let image = self.0.store.named(&reference.to_string()).filter(|_| platform.is_none())?;
        let whole = image.chain.iter().all(|chain| self.0.store.has_layer(chain));
        // Somebody may have pulled the name for another machine before: its index is the same.
        if !whole || check_platform(&image, &Platform::default()).is_err() {
            return None;
        }
        let digest = session.head().await.ok()??;
        image.repo_digests.contains(&reference.at(digest)).then_some(image)
    }

    /// Keeps content from being swept while the pull runs.
    pub(crate) fn pin(&self, blobs: Vec<Digest>) -> LayerHold {
        LayerHold::new(Arc::clone(&self.0.store), self.0.keeper.clone(), Vec::new(), blobs)
    }

    /// Goes from what the reference names down to the manifest for `platform`.
    async fn choose(
        &self,
        session: &Session,
        top: Resolved,
        platform: &Platform,
        pins: &mut Vec<LayerHold>,
    ) -> Result<(Descriptor, Manifest, Option<Descriptor>), Error> {
        let mut resolved = top;
        let mut index = None;
        for _ in 0..NESTING {
            let document = manifest::read(&resolved.bytes, &resolved.media_type)?;
            let mut descriptor = Descriptor::of(media_type(&resolved, &document), &resolved.bytes);
            self.keep(resolved.bytes).await?;
            let next = match document {
                Document::Manifest(manifest) => return Ok((descriptor, manifest, index)),
                Document::Index(entries) => {
                    let chosen = platform.choose(&entries.manifests).ok_or_else(|| Error::Platform {
                        platform: platform.clone(),
                        there: listing(&entries.manifests),
                    })?;
                    chosen.clone()
                }
            };
            if index.is_none() {
                descriptor.annotations.clear();
                index = Some(descriptor);
            }
            pins.push(self.pin(vec![next.digest]));
            resolved = self.manifest_at(session, &next).await?;
        }
        Err(manifest::Error::TooMany { what: "nesting of indexes", count: NESTING + 1, limit: NESTING }
            .into())
    }

    async fn manifest_at(&self, session: &Session, descriptor: &Descriptor) -> Result<Resolved, Error> {
        if descriptor.size > MANIFEST_LIMIT {
            return Err(manifest::Error::TooLarge { what: "manifest", size: descriptor.size }.into());
        }
        let media_type = descriptor.media_type.clone();
        if let Some(bytes) = self.kept(descriptor).await? {
            return Ok(Resolved { digest: descriptor.digest, media_type, bytes });
        }
        let resolved = session.manifest_at(descriptor.digest, descriptor.size).await?;
        Ok(resolved)
    }

    async fn config(&self, session: &Session, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let _one = self.0.store.blob_locks.lock(descriptor.digest).await;
        if let Some(bytes) = self.kept(descriptor).await? {
            return Ok(bytes);
        }
        let mut sink = feed::Collect(Vec::new());
        session.blob(descriptor.digest, descriptor.size, 0, &mut sink).await?;
        let got = Digest::of(&sink.0);
        if got != descriptor.digest {
            return Err(Error::Mismatch {
                layer: descriptor.digest,
                what: "as the image configuration the digest",
                got: got.to_string(),
                expected: descriptor.digest.to_string(),
            });
        }
        self.keep(sink.0.clone()).await?;
        Ok(sink.0)
    }

    /// A small blob that is here and whole.
    async fn kept(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, Error> {
        if !self.0.store.has_blob(&descriptor.digest, descriptor.size) {
            return Ok(None);
        }
        let (store, digest) = (Arc::clone(&self.0.store), descriptor.digest);
        blocking(move || Ok(store.read_blob(&digest, MANIFEST_LIMIT).ok())).await
    }

    pub(crate) async fn keep(&self, bytes: Vec<u8>) -> Result<Digest, Error> {
        let store = Arc::clone(&self.0.store);
        blocking(move || Ok(store.write_blob(&bytes)?)).await
    }

    /// Has all layers of an image unpacked, several at a time.
    pub(crate) async fn layers(
        &self,
        image: &Image,
        session: Option<&Session>,
        progress: Option<&mpsc::Sender<Progress>>,
    ) -> Result<(), Error> {
        let permits = Semaphore::new(self.0.options.max_parallel_downloads.max(1));
        let (done, ready): (Vec<_>, Vec<_>) = image.chain.iter().map(|_| watch::channel(false)).unzip();
        let jobs = image.manifest.layers.iter().enumerate().zip(done).map(|((index, descriptor), done)| {
            Job {
                images: self,
                session,
                descriptor,
                chain: image.chain.get(..=index).unwrap_or_default(),
                diff_id: image.diff_ids.get(index).copied(),
                below: index.checked_sub(1).and_then(|below| ready.get(below)).cloned(),
                done,
                permits: &permits,
                progress,
            }
            .run()
        });
        try_join_all(jobs).await?;
        Ok(())
    }

    /// Makes layers again that did not survive, from the content that is kept.
    pub(crate) async fn rebuild(&self, image: &Image) -> Result<(), Error> {
        let _pin = self.pin(content(&image.descriptor, &image.manifest));
        let _hold = self.hold(image);
        self.layers(image, None, None).await?;
        self.0.keeper.ask(Task::Sync);
        Ok(())
    }
}

/// Everything that belongs to an image.
pub(crate) fn content(descriptor: &Descriptor, manifest: &Manifest) -> Vec<Digest> {
    let layers = manifest.layers.iter().map(|layer| layer.digest);
    layers.chain([descriptor.digest, manifest.config.digest]).collect()
}

/// What a document says of itself counts, then what came with it.
fn media_type<'a>(resolved: &'a Resolved, document: &Document) -> &'a str {
    let told = resolved.media_type.split(';').next().unwrap_or_default().trim();
    match (told, document) {
        (manifest::OCI_INDEX | manifest::DOCKER_INDEX, Document::Index(_))
        | (manifest::OCI_MANIFEST | manifest::DOCKER_MANIFEST, Document::Manifest(_)) => told,
        (_, Document::Index(_)) => manifest::OCI_INDEX,
        (_, Document::Manifest(_)) => manifest::OCI_MANIFEST,
    }
}

/// The platforms of an index, for people.
fn listing(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .map(|entry| format!("{}/{}{}", entry.os, entry.architecture, entry.variant))
        .take(16)
        .collect();
    names.dedup();
    if names.is_empty() { "nothing that says so".to_owned() } else { names.join(", ") }
}

/// A manifest without an index is held against the machine by its configuration.
fn check_platform(image: &Image, platform: &Platform) -> Result<(), Error> {
    let entry = PlatformEntry {
        os: image.config.os().to_string(),
        architecture: image.config.architecture().to_string(),
        variant: String::new(),
    };
    let there = format!("{}/{}", entry.os, entry.architecture);
    let blank = entry.os.is_empty() || entry.architecture.is_empty();
    let fits = platform.choose(&[Descriptor { platform: Some(entry), ..Descriptor::default() }]).is_some();
    if blank || fits { Ok(()) } else { Err(Error::Platform { platform: platform.clone(), there }) }
}

/// A piece of a layer on its way to the thread that unpacks it.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    End,
}
