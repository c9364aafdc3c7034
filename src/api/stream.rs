//! Work whose course and outcome are a stream.

use futures::{Stream, StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tracing::Instrument;

/// The items that `work` causes, then what `last` makes of its outcome, if anything. The work runs by itself, so that a
/// reader that is slow does not hold it up; a stream that is dropped (the call was cancelled) stops it.
///
/// `items` must end when the work is over: its other end belongs into the work.
pub(crate) fn of_work<T, O>(
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
    work: impl Future<Output = Result<O, Status>> + Send + 'static,
    last: impl FnOnce(O) -> Option<T> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static
where
    T: Send + 'static,
    O: Send + 'static,
{
    let work = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
    let outcome = async move {
        match work.await {
            Ok(outcome) => outcome.map(last).transpose(),
            Err(error) => Some(Err(Status::internal(format!("the work ended early: {error}")))),
        }
    };
    items.chain(stream::once(outcome).filter_map(futures::future::ready))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    #[tokio::test]
    async fn items_come_before_the_outcome() {
        let (sender, receiver) = mpsc::channel(8);
        let work = async move {
            for number in 1..=3 {
                let _ = sender.send(Ok(number)).await;
            }
            Ok(10)
        };
        let stream = of_work(ReceiverStream::new(receiver), work, |sum| Some(sum + 1));
        let all: Vec<i32> = stream.map(Result::unwrap).collect().await;
        assert_eq!(all, [1, 2, 3, 11]);
    }

    #[tokio::test]
    async fn a_failure_is_the_last_item() {
        let work = async { Err::<(), _>(Status::not_found("no such image")) };
        let all: Vec<_> = of_work(stream::iter([Ok(1)]), work, |()| None).collect().await;
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].as_ref().unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn an_outcome_without_an_item_ends_the_stream() {
        let all: Vec<_> = of_work(stream::iter([Ok(1)]), async { Ok(()) }, |()| None).collect().await;
        assert_eq!(all.len(), 1);
    }

    #[tokio::test]
    async fn a_dropped_stream_stops_the_work() {
        let (alive, gone) = oneshot::channel::<()>();
        let work = async move {
            let _alive = alive;
            std::future::pending::<Result<(), Status>>().await
        };
        let stream = Box::pin(of_work(stream::pending::<Result<(), _>>(), work, |()| None));
        drop(stream);
        let stopped = tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
        assert!(stopped.is_err(), "the sender was dropped, not used");
    }
}
