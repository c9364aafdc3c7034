//! One plugin that is registered.
//!
//! A plugin is asked one thing at a time, as all that were written for containerd or CRI-O expect: its `turn` is held
//! during each call. One that does not answer within the request time limit, or answers nonsense, loses its connection: who
//! waits for its turn then goes on without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Child;

use super::connection::{CallError, Connection, code};
use crate::container::Refusal;
use crate::proto::nri::v1alpha1::{Container, Empty, Event, PodSandbox, StateChangeEvent};

/// All events there are, as the bits of Configure's answer.
pub(super) const ALL_EVENTS: i32 = (1 << (Event::Last as i32 - 1)) - 1;

/// A plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    /// Two digits.
    pub(super) index: String,
    /// What it calls itself.
    pub(super) base: String,
    /// What it wants to be told of.
    pub(super) events: i32,
    pub(super) connection: Connection,
    /// Held while it is asked something.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// How long it may take to answer.
    pub(super) limit: Duration,
    /// The process, if we started it. It is killed when this is dropped.
    pub(super) process: Mutex<Option<Child>>,
    /// It knows events only as state changes.
    pub(super) old: AtomicBool,
}

impl Plugin {
    /// Index and name, as operators know it.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    pub(super) fn wants(&self, event: Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    /// Ends the connection, and the process if it is ours.
    pub(super) fn close(&self) {
        self.connection.close();
        if let Some(child) = self.process.lock().as_mut()
            && let Err(error) = child.start_kill()
        {
            tracing::debug!(plugin = self.name(), %error, "killing an NRI plugin");
        }
    }

    /// Asks the plugin, if it wants that event and is there. `None` when it is not, or is no longer.
    ///
    /// # Errors
    /// [`Refusal`] with the plugin's own words.
    pub(super) async fn ask<Q, A>(&self, event: Event, request: &Q) -> Result<Option<A>, Refusal>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        self.call(event, request, None).await
    }

    /// Tells the plugin of an event. One that is too old to have a call for it is told of a state change.
    ///
    /// # Errors
    /// As [`Plugin::ask`].
    pub(super) async fn tell<Q: prost::Message>(
        &self,
        event: Event,
        request: &Q,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), Refusal> {
        self.call::<Q, Empty>(event, request, Some((pod, container))).await.map(drop)
    }

    async fn call<Q, A>(
        &self,
        event: Event,
        request: &Q,
        change: Option<(&PodSandbox, Option<&Container>)>,
    ) -> Result<Option<A>, Refusal>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        if !self.wants(event) || self.connection.is_closed() {
            return Ok(None);
        }
        let _turn = tokio::select! {
            turn = self.turn.lock() => turn,
            () = self.connection.closed() => return Ok(None),
        };
        let method = method(event);
        let mut answer = match (change, self.old.load(Ordering::Relaxed)) {
            (Some(_), true) => Err(CallError::Refused { code: code::UNIMPLEMENTED, message: String::new() }),
            _ => self.connection.call(method, request, self.limit).await,
        };
        if let (Some((pod, container)), Err(CallError::Refused { code: code::UNIMPLEMENTED, .. })) =
            (change, &answer)
        {
            let change = StateChangeEvent {
                event: event.into(),
                pod: Some(pod.clone()),
                container: container.cloned(),
            };
            answer = self.connection.call::<_, Empty>("StateChange", &change, self.limit).await.map(|_| {
                self.old.store(true, Ordering::Relaxed);
                A::default()
            });
        }
        match answer {
            Ok(answer) => Ok(Some(answer)),
            // Older than validation, and subscribed to all there is: it does not object.
            Err(CallError::Refused { code: code::UNIMPLEMENTED, .. })
                if event == Event::ValidateContainerAdjustment =>
            {
                Ok(Some(A::default()))
            }
            Err(error @ (CallError::Refused { .. } | CallError::TooLarge(_))) => {
                Err(self.refusal(method, error.to_string()))
            }
            Err(error) => {
                if !matches!(error, CallError::Closed) {
                    tracing::error!(plugin = self.name(), call = method, %error, "NRI plugin cut off");
                }
                self.close();
                Ok(None)
            }
        }
    }

    pub(super) fn refusal(&self, step: &'static str, reason: String) -> Refusal {
        Refusal { who: format!("NRI plugin {}", self.name()), step, reason }
    }
}

/// The call that tells of an event.
fn method(event: Event) -> &'static str {
    match event {
        Event::Unknown | Event::Last => "StateChange",
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
    }
}

/// Why a plugin may not have that index or name (nri, pkg/api/plugin.go).
pub(super) fn check_name(index: &str, base: &str) -> Result<(), String> {
    if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("index {index:?} is not two digits"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if base.is_empty() || base.len() > 128 || !base.chars().all(fits) {
        return Err(format!("name {base:?} is not 1 to 128 letters, digits, `-`, `_`, `.` or `+`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (index, base) in [("00", "a"), ("99", "device-injector"), ("10", "A_b.c+d")] {
            assert_eq!(check_name(index, base), Ok(()));
        }
        let long = "x".repeat(129);
        for (index, base) in [("0", "a"), ("000", "a"), ("1a", "a"), ("10", ""), ("10", "a/b"), ("10", &long)]
        {
            assert!(check_name(index, base).is_err(), "{index} {base}");
        }
    }

    #[test]
    fn fourteen_events() {
        assert_eq!(ALL_EVENTS, 0x3fff);
        for number in 1..Event::Last as i32 {
            let event = Event::try_from(number).unwrap_or_default();
            assert_ne!(method(event), "StateChange");
        }
    }
}
