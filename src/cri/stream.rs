//! Lists as streams (KEP-5825): for nodes whose list is larger than one message may be.

use std::pin::Pin;

use futures::Stream;
use tonic::Status;

/// What every streaming call answers with.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Items of one message: far below 16 MiB with the labels and annotations that Kubernetes allows (256 KiB a pod are
/// an exception, not the rule).
const CHUNK: usize = 50;

/// The items, some in each message. An empty list ends at once.
pub(crate) fn chunks<T, M>(items: Vec<T>, message: fn(Vec<T>) -> M) -> Answers<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(CHUNK).collect();
        (!chunk.is_empty()).then(|| Ok(message(chunk)))
    });
    Box::pin(futures::stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn nothing_is_lost_between_chunks() {
        let lengths: Vec<usize> =
            chunks((0..120).collect(), |chunk| chunk.len()).map(|chunk| chunk.unwrap_or(0)).collect().await;
        assert_eq!(lengths, [50, 50, 20]);
        assert_eq!(chunks(Vec::<u8>::new(), |chunk| chunk.len()).count().await, 0);
    }
}
