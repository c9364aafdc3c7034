//! Who is registered, and who joins while operations are under way.
//!
//! The plugins that are there at one time are a [`Generation`]. An operation holds the generation it began with until its
//! outcome is published. Who joins makes a new one that has it as well, and waits for the earlier ones to be let go: what
//! their operations made is then in the snapshots, and of all that comes later the plugin is told. So nothing that is made
//! while a plugin joins is lost to it, and nobody waits who has nothing to tell it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::plugin::Plugin;

/// The plugins that are there at one time, in the order in which they are asked.
#[derive(Debug, Default)]
pub(super) struct Generation {
    pub(super) plugins: Vec<Arc<Plugin>>,
    let_go: Arc<Notify>,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.let_go.notify_waiters();
    }
}

#[derive(Debug)]
struct State {
    current: Arc<Generation>,
    past: Vec<Weak<Generation>>,
}

/// All plugins.
#[derive(Debug)]
pub(super) struct Plugins {
    state: Mutex<State>,
    let_go: Arc<Notify>,
}

impl Plugins {
    pub(super) fn new() -> Self {
        let let_go = Arc::new(Notify::new());
        let current = Arc::new(Generation { plugins: Vec::new(), let_go: Arc::clone(&let_go) });
        Self { state: Mutex::new(State { current, past: Vec::new() }), let_go }
    }

    pub(super) fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.state.lock().current)
    }

    /// Lets `plugin` be told from now on. The answer are the generations that do not know it.
    pub(super) fn add(&self, plugin: Arc<Plugin>) -> Vec<Weak<Generation>> {
        self.replace(|plugins| {
            plugins.push(plugin);
            // Stable: of plugins with the same index, the one that came first is asked first.
            plugins.sort_by(|a, b| a.index.cmp(&b.index));
        })
    }

    pub(super) fn remove(&self, plugin: &Arc<Plugin>) {
        self.replace(|plugins| plugins.retain(|other| !Arc::ptr_eq(other, plugin)));
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Arc<Plugin>>)) -> Vec<Weak<Generation>> {
        let mut state = self.state.lock();
        let mut plugins = state.current.plugins.clone();
        change(&mut plugins);
        let next = Arc::new(Generation { plugins, let_go: Arc::clone(&self.let_go) });
        let old = std::mem::replace(&mut state.current, next);
        state.past.retain(|past| past.strong_count() > 0);
        state.past.push(Arc::downgrade(&old));
        let past = state.past.clone();
        drop(state);
        drop(old);
        past
    }

    /// Waits until no operation holds one of `past`. False when some still do after `limit`.
    pub(super) async fn drained(&self, past: &[Weak<Generation>], limit: Duration) -> bool {
        let gone = async {
            loop {
                let let_go = self.let_go.notified();
                tokio::pin!(let_go);
                let_go.as_mut().enable();
                if past.iter().all(|past| past.strong_count() == 0) {
                    return;
                }
                let_go.await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::AtomicBool;

    use super::super::connection::Connection;
    use super::super::plugin::ALL_EVENTS;
    use super::*;

    fn plugin(index: &str, base: &str) -> Arc<Plugin> {
        let (stream, _) = tokio::net::UnixStream::pair().unwrap();
        Arc::new(Plugin {
            index: index.to_owned(),
            base: base.to_owned(),
            events: ALL_EVENTS,
            connection: Connection::open(stream).0,
            turn: Arc::default(),
            limit: Duration::from_secs(1),
            process: Mutex::default(),
            old: AtomicBool::new(false),
        })
    }

    #[tokio::test]
    async fn plugins_are_asked_in_order_of_index_then_arrival() {
        let plugins = Plugins::new();
        let second = plugin("20", "b");
        for plugin in [plugin("30", "a"), Arc::clone(&second), plugin("10", "z"), plugin("20", "a")] {
            plugins.add(plugin);
        }
        let names = || plugins.current().plugins.iter().map(|p| p.name()).collect::<Vec<_>>();
        assert_eq!(names(), ["10-z", "20-b", "20-a", "30-a"]);
        plugins.remove(&second);
        assert_eq!(names(), ["10-z", "20-a", "30-a"]);
    }

    #[tokio::test]
    async fn who_joins_waits_for_those_who_do_not_know_it() {
        let plugins = Arc::new(Plugins::new());
        let first = plugins.current();
        plugins.add(plugin("10", "a"));
        let second = plugins.current();
        let past = plugins.add(plugin("20", "b"));
        let third = plugins.current();
        let short = Duration::from_millis(20);
        assert!(!plugins.drained(&past, short).await);
        drop(second);
        // An operation that began two generations ago counts as well.
        assert!(!plugins.drained(&past, short).await);
        let waiting = {
            let plugins = Arc::clone(&plugins);
            tokio::spawn(async move { plugins.drained(&past, Duration::from_secs(10)).await })
        };
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.unwrap());
        drop(third);
    }
}
