//! One layer of a pull.
//!
//! ```text
//! lock chain ─ there? ─> done
//!     └─ lock blob ─ there? ─> unpack from the file ─┐
//!            └─ permit ─> transfer │ unpack (thread) ─┴─> digests right ─> wait for the layer below ─> visible
//! ```

use crate::image::error::Chain;
use std::io::{self, Read};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};

use super::feed::{Feed, PIECES, Source, Teller};
use super::{Phase, Piece, Progress};
use crate::image::digest::{ChainId, Digest};
use crate::image::error::blocking;
use crate::image::manifest::Descriptor;
use crate::image::registry::{Ended, Session};
use crate::image::store::{self, Guard, Store, Work};
use crate::image::unpack::{self, Limits, Unpacked};
use crate::image::{Error, Images};

/// What one layer needs.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(super) images: &'a Images,
    /// Where to get content; `None` when only what is here counts.
    pub(super) session: Option<&'a Session>,
    pub(super) descriptor: &'a Descriptor,
    /// This layer's stack: its own id last.
    pub(super) chain: &'a [ChainId],
    pub(super) diff_id: Option<Digest>,
    /// Says when the layer below is visible.
    pub(super) below: Option<watch::Receiver<bool>>,
    pub(super) done: watch::Sender<bool>,
    pub(super) permits: &'a Semaphore,
    pub(super) progress: Option<&'a mpsc::Sender<Progress>>,
}

/// An unpacked layer that nobody sees yet.
struct Ready {
    work: Work,
    unpacked: Unpacked,
}

impl Job<'_> {
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let store = &self.images.0.store;
        let (Some(chain), Some(diff_id)) = (self.chain.last().copied(), self.diff_id) else { return Ok(()) };
        let size = self.descriptor.size;
        let teller = Teller { layer: self.descriptor.digest, total: size, to: self.progress };
        teller.tell(Phase::Waiting, 0);
        let limit = self.images.0.options.limits.compressed_bytes;
        if size > limit {
            return Err(Error::LayerSize { layer: self.descriptor.digest, size, limit });
        }
        let _chain = store.layer_locks.lock(chain).await;
        if store.has_layer(&chain) {
            teller.tell(Phase::Exists, size);
            self.images.count_layer(false);
            let _ = self.done.send(true);
            return Ok(());
        }
        let ready = self.unpacked(diff_id, teller).await?;
        self.wait_below().await?;
        let lower = self.images.chain_dirs(self.chain.split_last().map_or(&[], |(_, below)| below));
        let store = Arc::clone(store);
        blocking(move || {
            let Ready { work, unpacked } = ready;
            unpack::inherit(&work.fs(), &unpacked.implicit, &lower.unwrap_or_default())
                .map_err(|errno| store::Error::io("preparing", &work.fs())(errno.into()))?;
            store.publish_layer(work, chain, unpacked.bytes, unpacked.inodes)?;
            Ok(())
        })
        .await?;
        teller.tell(Phase::Done, size);
        let _ = self.done.send(true);
        Ok(())
    }

    /// Directories that this layer implies take their attributes from below, so that must be there first.
    async fn wait_below(&mut self) -> Result<(), Error> {
        match &mut self.below {
            None => Ok(()),
            Some(below) => below.wait_for(|done| *done).await.map(|_| ()).map_err(|_| Error::Cancelled),
        }
    }

    async fn unpacked(&self, diff_id: Digest, teller: Teller<'_>) -> Result<Ready, Error> {
        let store = &self.images.0.store;
        let digest = self.descriptor.digest;
        let mut guard = store.blob_locks.lock(digest).await;
        let _permit = self.permits.acquire().await.map_err(|_| Error::Cancelled)?;
        if store.has_blob(&digest, self.descriptor.size) {
            let result;
            (guard, result) = self.unpack_stored(guard, diff_id).await?;
            match result {
                Ok(ready) => return Ok(ready),
                // Damaged on disk: a registry may still have it.
                Err(error) if self.session.is_some() => {
                    tracing::warn!(layer = %digest, error = %Chain(&error), "content in the store is fetched again");
                }
                Err(error) => return Err(error),
            }
        }
        // Only a layer that comes from the registry counts as that: one unpacked again from the store does not.
        let Some(session) = self.session else { return Err(store::Error::MissingBlob(digest).into()) };
        teller.tell(Phase::Downloading, 0);
        self.images.count_layer(true);
        let resumed;
        let result;
        (guard, resumed, result) = self.unpack_fetched(session, guard, diff_id, teller).await?;
        match result {
            // What an earlier transfer left may have been damaged: once more from the start.
            Err(Error::Mismatch { .. } | Error::Layer { source: unpack::Error::Read(_), .. }) if resumed => {
                let (_, _, result) = self.unpack_fetched(session, guard, diff_id, teller).await?;
                result
            }
            result => result,
        }
    }

    async fn unpack_stored(
        &self,
        guard: Guard,
        diff_id: Digest,
    ) -> Result<(Guard, Result<Ready, Error>), Error> {
        let store = Arc::clone(&self.images.0.store);
        let limits = self.images.0.options.limits;
        let descriptor = self.descriptor.clone();
        blocking(move || {
            let result = store
                .open_blob(&descriptor.digest)
                .map_err(Error::from)
                .and_then(|file| run(&store, Source::of_file(file), &descriptor, diff_id, limits));
            if matches!(result, Err(Error::Mismatch { .. } | Error::Layer { .. })) {
                store.drop_blob(&descriptor.digest);
            }
            Ok((guard, result))
        })
        .await
    }

    /// Downloads and unpacks at the same time. The guard goes with the thread: even when nobody waits for it any more, no
    /// other writes into the same file before it has ended.
    async fn unpack_fetched(
        &self,
        session: &Session,
        guard: Guard,
        diff_id: Digest,
        teller: Teller<'_>,
    ) -> Result<(Guard, bool, Result<Ready, Error>), Error> {
        let store = Arc::clone(&self.images.0.store);
        let limits = self.images.0.options.limits;
        let descriptor = self.descriptor.clone();
        let (digest, size) = (descriptor.digest, descriptor.size);
        let mut ingest = store.ingest(&digest)?;
        if ingest.there > size {
            ingest.remove();
            ingest = store.ingest(&digest)?;
        }
        let start = ingest.there;
        let (pieces, receiver) = mpsc::channel(PIECES);
        let thread = tokio::task::spawn_blocking(move || {
            let result = ingest.left_over().map_err(Error::from).and_then(|left_over| {
                let source = Source::of_transfer(Some(left_over), receiver, ingest);
                run(&store, source, &descriptor, diff_id, limits)
            });
            (guard, result)
        });
        let mut feed = Feed { pieces, teller, current: start };
        let fed = session.blob(digest, size, start, &mut feed).await;
        if matches!(fed, Ok(Ended::Whole)) {
            let _ = feed.pieces.send(Piece::End).await;
        }
        drop(feed);
        let (guard, result) = match thread.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(Error::Cancelled),
            },
        };
        // When the registry failed, the thread's error is only the consequence.
        fed?;
        Ok((guard, start > 0, result))
    }
}

/// The pass over a layer and its verdict. Content that is right becomes a blob, content that is wrong goes.
fn run(
    store: &Store,
    mut source: Source<impl Read>,
    descriptor: &Descriptor,
    diff_id: Digest,
    limits: Limits,
) -> Result<Ready, Error> {
    let layer = descriptor.digest;
    let work = store.layer_work()?;
    let count = source.count();
    let mut outcome = unpack::unpack(&mut source, &count, &work.fs(), limits);
    if matches!(outcome, Err(unpack::Error::Read(_) | unpack::Error::Format(_))) {
        // Nonsense is most likely content that is not what was asked for: the digest tells.
        if let Err(error) = io::copy(&mut source, &mut io::sink()) {
            outcome = Err(error.into());
        }
    }
    let (digest, size, ingest) = source.finish();
    let mismatch = |what, got: String, expected: String| Error::Mismatch { layer, what, got, expected };
    let verdict = match outcome {
        Err(unpack::Error::Aborted) => return Err(Error::Cancelled),
        Err(
            source
            @ (unpack::Error::Entry { .. } | unpack::Error::Limit(_) | unpack::Error::Directory { .. }),
        ) => Err(Error::Layer { layer, source }),
        _ if size != descriptor.size => Err(mismatch("size", size.to_string(), descriptor.size.to_string())),
        _ if digest != layer => Err(mismatch("digest", digest.to_string(), layer.to_string())),
        Err(source) => Err(Error::Layer { layer, source }),
        Ok(unpacked) if unpacked.diff_id != diff_id => {
            Err(mismatch("diff id", unpacked.diff_id.to_string(), diff_id.to_string()))
        }
        Ok(unpacked) => Ok(unpacked),
    };
    match (verdict, ingest) {
        (Ok(unpacked), ingest) => {
            if let Some(ingest) = ingest {
                store.publish_blob(&ingest.path, &layer, size)?;
            }
            Ok(Ready { work, unpacked })
        }
        (Err(error), ingest) => {
            if let Some(ingest) = ingest {
                ingest.remove();
            }
            Err(error)
        }
    }
}
