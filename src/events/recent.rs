//! The last events, for those who come after something happened.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;

use super::Error;
use crate::pod::{EventKind, Pods};

/// How many are kept.
const KEPT: usize = 512;

/// Something that happened to a pod or container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// When, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// What.
    pub kind: EventKind,
    /// The pod.
    pub pod: String,
    /// The container; `None` when it happened to the pod itself.
    pub container: Option<String>,
}

/// Keeps the last events. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Happened>>>);

impl Recent {
    /// Keeps the events of these pods from now on.
    pub fn of(pods: &Pods) -> Self {
        let recent = Self::default();
        tokio::spawn(recent.clone().keep(pods.clone()));
        recent
    }

    /// The last events, the oldest first.
    pub fn list(&self) -> Vec<Happened> {
        self.0.lock().iter().cloned().collect()
    }

    async fn keep(self, pods: Pods) {
        loop {
            let events = super::subscribe(&pods);
            futures::pin_mut!(events);
            loop {
                match events.next().await {
                    Some(Ok(event)) => self.add(Happened {
                        at: event.at,
                        kind: event.kind,
                        pod: event.pod.id.clone(),
                        container: (event.id != event.pod.id).then(|| event.id.clone()),
                    }),
                    // Some were missed under great load: on with those to come.
                    Some(Err(Error::FellBehind { .. })) => break,
                    Some(Err(Error::ShuttingDown)) | None => return,
                }
            }
        }
    }

    fn add(&self, happened: Happened) {
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(happened);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept() {
        let recent = Recent::default();
        for at in 0..600 {
            recent.add(Happened { at, kind: EventKind::Created, pod: "p".into(), container: None });
        }
        let kept = recent.list();
        assert_eq!((kept.len(), kept.first().map(|one| one.at)), (KEPT, Some(88)));
        assert_eq!(kept.last().map(|one| one.at), Some(599));
    }
}
