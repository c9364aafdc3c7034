//! Container events, for many subscribers.
//!
//! Each reads at its own pace from one bounded channel that the pods' tasks write to. One that reads too slowly has lost
//! events, and an event stream with holes is worth nothing: it ends with an error, and the subscriber lists and subscribes
//! anew. Nothing is queued for it, so it can't make the daemon grow.

mod recent;

use std::sync::Arc;

use futures::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::error::{Classify, Kind};
use crate::pod::{PodEvent, Pods};

pub use recent::{Happened, Recent};

/// Why a subscription ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The subscriber read too slowly.
    #[error(
        "the subscriber fell behind and {missed} events were dropped: list the containers and subscribe again"
    )]
    FellBehind {
        /// How many it missed.
        missed: u64,
    },
    /// The daemon ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::FellBehind { .. } => Kind::ResourceExhausted,
            Self::ShuttingDown => Kind::Unavailable,
        }
    }
}

/// Events from now on, in order. It ends after an error.
pub fn subscribe(pods: &Pods) -> impl Stream<Item = Result<Arc<PodEvent>, Error>> + Send + use<> {
    stream(pods.events())
}

fn stream<T: Clone + Send + 'static>(
    receiver: Receiver<T>,
) -> impl Stream<Item = Result<T, Error>> + Send + use<T> {
    futures::stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Ok(event) => Some((Ok(event), Some(receiver))),
            Err(RecvError::Lagged(missed)) => Some((Err(Error::FellBehind { missed }), None)),
            Err(RecvError::Closed) => Some((Err(Error::ShuttingDown), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::sync::broadcast;

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_is_let_go() {
        let sender = broadcast::Sender::new(4);
        let (quick, slow) = (stream(sender.subscribe()), stream(sender.subscribe()));
        futures::pin_mut!(quick, slow);
        for number in 0..20 {
            let _ = sender.send(number);
            assert!(matches!(quick.next().await, Some(Ok(got)) if got == number));
        }
        assert!(matches!(slow.next().await, Some(Err(Error::FellBehind { missed: 16 }))));
        assert!(slow.next().await.is_none());
        drop(sender);
        assert!(matches!(quick.next().await, Some(Err(Error::ShuttingDown))));
        assert!(quick.next().await.is_none());
    }
}
