//! One push: content first, several blobs at a time, then manifests, the one that the name points to last. So whoever pulls
//! finds the old image or the whole new one.
//!
//! What the registry has already is not sent; what another repository of the same registry is known to have (the image was
//! pulled from there) it is asked to take from there. Content that is no longer kept here (`discard_unpacked_layers`) is no
//! obstacle where the registry has it.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::error::blocking;
use super::hold::LayerHold;
use super::manifest::{self, Descriptor, Document, MANIFEST_LIMIT, Manifest};
use super::pull::{Phase, Progress, content};
use super::reference::Target;
use super::registry::{Given, Outgoing, Purpose, Session, Source};
use super::store::{self, Store};
use super::{Credentials, Digest, Error, Image, Images, Reference};

/// What is to be pushed.
#[derive(Clone, Debug, Default)]
pub struct PushRequest {
    /// Name of an image that is here: it says where the image goes.
    pub reference: String,
    /// What may be shown to the registry.
    pub auth: Option<Credentials>,
    /// Told of layers. Steps are left out when nobody reads.
    pub progress: Option<mpsc::Sender<Progress>>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The normalised name.
    pub reference: String,
    /// What it points to now.
    pub digest: Digest,
    /// Platforms that went along.
    pub platforms: usize,
}

/// Everything that goes.
struct Plan {
    /// What the name is to point to.
    top: Descriptor,
    manifests: Vec<(Descriptor, Manifest)>,
    _pins: Vec<LayerHold>,
}

/// A blob of an image, and what it is in words.
type Part<'a> = (&'static str, &'a Descriptor);

impl Images {
    /// Pushes an image. Dropping the future stops the work; what the registry has by then it keeps.
    pub async fn push(&self, request: PushRequest) -> Result<Pushed, Error> {
        let reference: Reference = request.reference.parse()?;
        let image = self
            .0
            .store
            .named(&reference.to_string())
            .ok_or_else(|| Error::NotFound(reference.to_string()))?;
        let plan = self.plan(&image).await?;
        if let Target::Digest(digest) = reference.target()
            && *digest != plan.top.digest
        {
            let problem = "not all of what the digest names is here: give the image a tag and push that";
            return Err(Error::Name { reference: request.reference, doing: "pushed", problem });
        }
        let session = self.session(&reference, request.auth, Purpose::Push).await?;
        let elsewhere = elsewhere(&image, &reference);
        self.give_content(&session, &plan, &elsewhere, &reference, request.progress.as_ref()).await?;
        for (descriptor, _) in plan.manifests.iter().filter(|(one, _)| one.digest != plan.top.digest) {
            self.give_manifest(&session, &Target::Digest(descriptor.digest), descriptor).await?;
        }
        self.give_manifest(&session, reference.target(), &plan.top).await?;
        let mut known = Image::clone(&image);
        known.repo_tags.clear();
        known.repo_digests.push(reference.at(plan.top.digest));
        self.name_pushed(known).await?;
        let platforms = plan.manifests.len();
        Ok(Pushed { reference: reference.to_string(), digest: plan.top.digest, platforms })
    }

    /// Remembers where the image can be had by digest now. It may have been removed meanwhile: then it stays so.
    async fn name_pushed(&self, image: Image) -> Result<(), Error> {
        if self.0.store.image(&image.digest()).is_some() {
            self.commit(image).await?;
        }
        Ok(())
    }

    /// What goes along: the index with all its platforms where all are here, else the image's own manifest.
    async fn plan(&self, image: &Arc<Image>) -> Result<Plan, Error> {
        let pins = vec![self.pin(content(&image.descriptor, &image.manifest))];
        let one = Plan {
            top: image.descriptor.clone(),
            manifests: vec![(image.descriptor.clone(), image.manifest.clone())],
            _pins: pins,
        };
        let Some(index) = image.index.clone() else { return Ok(one) };
        let store = Arc::clone(&self.0.store);
        let top = index.clone();
        let found = blocking(move || Ok(platforms(&store, &top))).await?;
        let Some(manifests) = found else { return Ok(one) };
        let mut pins = one._pins;
        pins.push(self.pin(vec![index.digest]));
        pins.extend(manifests.iter().map(|(descriptor, manifest)| self.pin(content(descriptor, manifest))));
        Ok(Plan { top: index, manifests, _pins: pins })
    }

    async fn give_content(
        &self,
        session: &Session,
        plan: &Plan,
        elsewhere: &[String],
        reference: &Reference,
        progress: Option<&mpsc::Sender<Progress>>,
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let parts: Vec<Part<'_>> = plan
            .manifests
            .iter()
            .flat_map(|(_, manifest)| {
                let layers = manifest.layers.iter().map(|layer| ("layer", layer));
                layers.chain([("configuration", &manifest.config)])
            })
            .filter(|(_, descriptor)| seen.insert(descriptor.digest))
            .collect();
        for (_, layer) in parts.iter().filter(|(what, _)| *what == "layer") {
            tell(progress, layer, Phase::Waiting, 0);
        }
        // Made before they are run: a closure in the stream would have to hold for every lifetime.
        let jobs: Vec<_> = parts
            .into_iter()
            .map(|part| self.give_part(session, part, elsewhere, reference, progress).boxed())
            .collect();
        futures::stream::iter(jobs)
            .buffer_unordered(self.0.options.max_parallel_downloads.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    async fn give_part(
        &self,
        session: &Session,
        (what, descriptor): Part<'_>,
        elsewhere: &[String],
        reference: &Reference,
        progress: Option<&mpsc::Sender<Progress>>,
    ) -> Result<(), Error> {
        let store = &self.0.store;
        let progress = progress.filter(|_| what == "layer");
        let here = store.has_blob(&descriptor.digest, descriptor.size);
        let blob = Outgoing {
            digest: descriptor.digest,
            size: descriptor.size,
            source: here.then(|| Source::File(store.blob_path(&descriptor.digest))),
            elsewhere,
        };
        let told = |sent: u64| tell(progress, descriptor, Phase::Uploading, sent);
        let given = match session.give(blob, &told).await {
            Ok(Some(given)) => given,
            Ok(None) => {
                return Err(Error::NotKept {
                    what,
                    digest: descriptor.digest,
                    reference: reference.to_string(),
                    host: session.taker_name()?,
                });
            }
            Err(error) => return Err(self.explained(error, descriptor, here).await),
        };
        let phase = match given {
            Given::Exists => Phase::Exists,
            Given::Mounted => Phase::Mounted,
            Given::Uploaded => Phase::Done,
        };
        tell(progress, descriptor, phase, descriptor.size);
        Ok(())
    }

    /// A registry that refuses content may be right: it is held against its digest here, too.
    async fn explained(&self, error: super::registry::Error, descriptor: &Descriptor, here: bool) -> Error {
        if !here || !matches!(error, super::registry::Error::Status { status: 400, .. }) {
            return error.into();
        }
        let (store, digest) = (Arc::clone(&self.0.store), descriptor.digest);
        match blocking(move || Ok(store.verify_blob(&digest)?)).await {
            Err(damaged @ Error::Store(store::Error::Damaged(_))) => damaged,
            _ => error.into(),
        }
    }

    async fn give_manifest(
        &self,
        session: &Session,
        target: &Target,
        descriptor: &Descriptor,
    ) -> Result<(), Error> {
        let (store, digest) = (Arc::clone(&self.0.store), descriptor.digest);
        let bytes = blocking(move || Ok(store.read_blob(&digest, MANIFEST_LIMIT)?)).await?;
        Ok(session.put_manifest(target, &descriptor.media_type, bytes).await?)
    }
}

fn tell(progress: Option<&mpsc::Sender<Progress>>, layer: &Descriptor, phase: Phase, current: u64) {
    if let Some(progress) = progress {
        let _ = progress.try_send(Progress {
            layer: layer.digest,
            phase,
            current: current.min(layer.size),
            total: layer.size,
        });
    }
}

/// Repositories of the same registry that the image is known to be in.
fn elsewhere(image: &Image, reference: &Reference) -> Vec<String> {
    let mut paths: Vec<String> = image
        .repo_digests
        .iter()
        .filter_map(|name| name.parse::<Reference>().ok())
        .filter(|other| other.host() == reference.host() && other.path() != reference.path())
        .map(|other| other.path().to_owned())
        .take(4)
        .collect();
    paths.dedup();
    paths
}

/// The manifests of an index with their content, when all of it is here. Blocking.
fn platforms(store: &Store, index: &Descriptor) -> Option<Vec<(Descriptor, Manifest)>> {
    let bytes = store.read_blob(&index.digest, MANIFEST_LIMIT).ok()?;
    let Ok(Document::Index(entries)) = manifest::read(&bytes, &index.media_type) else { return None };
    let mut found = Vec::new();
    for entry in &entries.manifests {
        if !store.has_blob(&entry.digest, entry.size) {
            return None;
        }
        let bytes = store.read_blob(&entry.digest, MANIFEST_LIMIT).ok()?;
        let Ok(Document::Manifest(manifest)) = manifest::read(&bytes, &entry.media_type) else { return None };
        let whole =
            manifest.layers.iter().chain([&manifest.config]).all(|one| store.has_blob(&one.digest, one.size));
        if !whole {
            return None;
        }
        found.push((entry.clone(), manifest));
    }
    (!found.is_empty()).then_some(found)
}
