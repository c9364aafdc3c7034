//! One at a time for each key, with waiting that can be given up.
//!
//! This is how concurrent pulls share work: whoever holds the key does it, the others find it done when their turn comes. When
//! the one at work is cancelled or fails, the next takes over, with its own credentials and from where the first stopped.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// A key that is held; dropped, the next one has it.
pub(crate) type Guard = OwnedMutexGuard<()>;

/// Locks by key.
#[derive(Debug)]
pub(crate) struct Locks<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash> Locks<K> {
    /// Waits for the key.
    pub(crate) async fn lock(&self, key: K) -> Guard {
        let lock = {
            let mut locks = self.0.lock();
            // Nobody holds or awaits those that only the map knows.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key).or_default())
        };
        lock.lock_owned().await
    }

    /// Whether somebody holds or awaits the key.
    pub(crate) fn is_busy(&self, key: &K) -> bool {
        self.0.lock().get(key).is_some_and(|lock| Arc::strong_count(lock) > 1)
    }
}
