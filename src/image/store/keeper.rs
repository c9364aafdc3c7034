//! The thread that does what nobody should wait for: syncing to disk, and removing what a dropped hold freed.

use crate::image::error::Chain;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Error, Store};

/// Pulls within this time share one sync.
const GATHER: Duration = Duration::from_secs(1);

/// What can be asked of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Layers were added.
    Sync,
    /// Something may have become free.
    Sweep,
}

/// A handle on the thread; it ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct Keeper(SyncSender<Task>);

impl Keeper {
    pub(crate) fn start(store: &Arc<Store>) -> Result<Self, Error> {
        let (sender, receiver) = sync_channel(64);
        let weak = Arc::downgrade(store);
        std::thread::Builder::new()
            .name("image-keeper".to_owned())
            .spawn(move || run(&weak, &receiver))
            .map_err(Error::io("starting a thread for", &store.images_directory))?;
        Ok(Self(sender))
    }

    /// Asks; a full queue already holds the same question.
    pub(crate) fn ask(&self, task: Task) {
        if let Err(TrySendError::Disconnected(task)) = self.0.try_send(task) {
            tracing::warn!(?task, "the image keeper has ended");
        }
    }
}

fn run(store: &Weak<Store>, receiver: &Receiver<Task>) {
    while let Ok(first) = receiver.recv() {
        let (mut sync, mut sweep) = (first == Task::Sync, first == Task::Sweep);
        if sync {
            std::thread::sleep(GATHER);
        }
        while let Ok(task) = receiver.try_recv() {
            sync |= task == Task::Sync;
            sweep |= task == Task::Sweep;
        }
        let Some(store) = store.upgrade() else { return };
        if sync {
            match store.sync_layers() {
                // Blobs that were kept only until now may go.
                Ok(()) => sweep |= store.discard_unpacked,
                Err(error) => tracing::warn!(error = %Chain(&error), "layers could not be synced"),
            }
        }
        if sweep {
            for error in store.sweep().errors {
                tracing::warn!(error = %Chain(&error), "sweeping images");
            }
        }
    }
}
