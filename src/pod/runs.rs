//! RunPodSandbox calls by metadata: retries join the call under way, and a sandbox that is there is named.
//!
//! A pure table; the futures it hands out are the callers' to await.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::{BoxFuture, Shared};

use super::error::Error;
use crate::proto::runtime::v1::{PodSandboxConfig, PodSandboxMetadata};

/// What makes a sandbox the same: name, namespace, uid, attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
}

impl Key {
    pub(super) fn new(metadata: &PodSandboxMetadata) -> Self {
        Self {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, namespace, uid, attempt } = self;
        write!(formatter, "{namespace}/{name} (uid {uid:?}, attempt {attempt})")
    }
}

/// The answer of a run, for all who wait for it.
pub(super) type Answer = Shared<BoxFuture<'static, Result<String, Arc<Error>>>>;

/// One run: under way or done.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) id: String,
    config: Arc<PodSandboxConfig>,
    handler: String,
    pub(super) answer: Answer,
    /// Somebody got the answer. Until then, whoever asks again is the same caller, whose first call ran out of time.
    delivered: Arc<AtomicBool>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Run").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Run {
    pub(super) fn new(id: String, config: Arc<PodSandboxConfig>, handler: String, answer: Answer) -> Self {
        Self { id, config, handler, answer, delivered: Arc::default() }
    }

    /// A sandbox that was there when the daemon started.
    pub(super) fn found(id: String, config: Arc<PodSandboxConfig>, handler: String) -> Self {
        use futures::FutureExt;
        let answer = futures::future::ready(Ok(id.clone())).boxed().shared();
        let run = Self::new(id, config, handler, answer);
        run.delivered();
        run
    }

    pub(super) fn delivered(&self) {
        self.delivered.store(true, Ordering::Relaxed);
    }
}

/// All runs.
#[derive(Debug, Default)]
pub(super) struct Runs(HashMap<Key, Run>);

impl Runs {
    /// The run to await for this request: the one under way, or the one that `begin` starts.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when the sandbox is there and its caller knows, [`Error::Conflict`] when it is being made
    /// from something else.
    pub(super) fn join_or_begin(
        &mut self,
        key: Key,
        config: &PodSandboxConfig,
        handler: &str,
        begin: impl FnOnce() -> Run,
    ) -> Result<Run, Error> {
        let Some(run) = self.0.get(&key) else {
            let run = begin();
            self.0.insert(key, run.clone());
            return Ok(run);
        };
        if run.delivered.load(Ordering::Relaxed) {
            let what = "pod sandbox";
            return Err(Error::AlreadyExists { what, name: key.to_string(), id: run.id.clone() });
        }
        if *run.config != *config || run.handler != handler {
            return Err(Error::Conflict { what: "pod sandbox", name: key.to_string() });
        }
        Ok(run.clone())
    }

    /// Ids of all sandboxes, made or being made.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|run| run.id.as_str())
    }

    pub(super) fn insert(&mut self, key: Key, run: Run) {
        self.0.insert(key, run);
    }

    /// Frees the metadata, if sandbox `id` holds it.
    pub(super) fn free(&mut self, key: &Key, id: &str) {
        if self.0.get(key).is_some_and(|run| run.id == id) {
            self.0.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::FutureExt;

    use super::*;

    fn config(name: &str) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata { name: name.into(), uid: "u".into(), ..Default::default() };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn begin(id: &str, config: &PodSandboxConfig) -> Run {
        let answer = futures::future::pending().boxed().shared();
        Run::new(id.into(), Arc::new(config.clone()), String::new(), answer)
    }

    #[test]
    fn a_retry_joins_until_somebody_knows() {
        let mut runs = Runs::default();
        let config = config("a");
        let key = Key::new(config.metadata.as_ref().unwrap());
        let first = runs.join_or_begin(key.clone(), &config, "", || begin("1", &config)).unwrap();
        let second = runs.join_or_begin(key.clone(), &config, "", || begin("2", &config)).unwrap();
        assert_eq!((first.id.as_str(), second.id.as_str()), ("1", "1"));

        let mut other = config.clone();
        other.hostname = "b".into();
        let refused = runs.join_or_begin(key.clone(), &other, "", || begin("2", &other)).unwrap_err();
        assert!(matches!(refused, Error::Conflict { .. }));

        first.delivered();
        let refused = runs.join_or_begin(key.clone(), &config, "", || begin("2", &config)).unwrap_err();
        assert!(refused.to_string().contains("as 1"), "{refused}");

        runs.free(&key, "not the holder");
        assert!(runs.join_or_begin(key.clone(), &config, "", || begin("2", &config)).is_err());
        runs.free(&key, "1");
        assert_eq!(runs.join_or_begin(key, &config, "", || begin("2", &config)).unwrap().id, "2");
    }
}
