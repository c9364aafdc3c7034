//! What is in use stays.

use std::fmt;
use std::sync::Arc;

use super::digest::{ChainId, Digest};
use super::store::{Keeper, Store, Task};

/// Keeps layers (and a pull's content) from being removed until it is dropped.
pub struct LayerHold {
    store: Arc<Store>,
    keeper: Keeper,
    chain: Vec<ChainId>,
    blobs: Vec<Digest>,
}

impl LayerHold {
    pub(super) fn new(store: Arc<Store>, keeper: Keeper, chain: Vec<ChainId>, blobs: Vec<Digest>) -> Self {
        store.hold(&chain, &blobs);
        Self { store, keeper, chain, blobs }
    }

    /// The layers that are held, bottom first.
    pub fn chain(&self) -> &[ChainId] {
        &self.chain
    }
}

impl fmt::Debug for LayerHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerHold").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        if self.store.release(&self.chain, &self.blobs) {
            self.keeper.ask(Task::Sweep);
        }
    }
}
