//! What a request carries to a registry, and whether it moves.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use reqwest::Body;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Files are read in pieces of this size.
const BUFFER: usize = 128 << 10;
/// How often is looked whether bytes move.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// Where bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file, opened when it is sent.
    File(PathBuf),
    /// A small document.
    Bytes(Bytes),
}

/// The body of a request, which can be made again.
#[derive(Clone, Debug)]
pub(super) struct Content {
    source: Source,
    media_type: String,
    /// First byte and how many.
    from: u64,
    length: u64,
    /// It is a piece: its place is said.
    piece: bool,
    /// Bytes handed to the connection so far.
    sent: Arc<AtomicU64>,
}

impl Content {
    pub(super) fn whole(source: Source, length: u64, media_type: &str) -> Self {
        let media_type = media_type.to_owned();
        Self { source, media_type, from: 0, length, piece: false, sent: Arc::default() }
    }

    /// So many bytes of a source, from one on.
    pub(super) fn piece(source: Source, from: u64, length: u64) -> Self {
        Self { from, length, piece: true, ..Self::whole(source, 0, "application/octet-stream") }
    }

    /// Bytes handed to the connection so far.
    pub(super) fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// Waits for an answer for as long as bytes move, and `limit` longer. `None`: they no longer do.
    pub(super) async fn while_it_moves<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let (mut before, mut since) = (0, Instant::now());
        loop {
            if let Ok(answer) = tokio::time::timeout(limit.min(LOOK), &mut work).await {
                return Some(answer);
            }
            let now = self.sent.load(Ordering::Relaxed);
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                return None;
            }
        }
    }

    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.media_type) {
            headers.insert(CONTENT_TYPE, value);
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(self.length));
        if self.piece
            && let Ok(value) = HeaderValue::from_str(&format!(
                "{}-{}",
                self.from,
                (self.from + self.length).saturating_sub(1)
            ))
        {
            headers.insert(CONTENT_RANGE, value);
        }
    }

    pub(super) fn body(&self) -> Body {
        self.sent.store(0, Ordering::Relaxed);
        match &self.source {
            Source::Bytes(bytes) => Body::from(bytes.clone()),
            // An empty stream would be sent as one of unknown length.
            Source::File(_) if self.length == 0 => Body::from(Bytes::new()),
            Source::File(path) => {
                let (path, from, length, sent) =
                    (path.clone(), self.from, self.length, Arc::clone(&self.sent));
                let open = async move {
                    let mut file = tokio::fs::File::open(path).await?;
                    file.seek(std::io::SeekFrom::Start(from)).await?;
                    Ok::<_, std::io::Error>(ReaderStream::with_capacity(file.take(length), BUFFER))
                };
                let pieces = futures::stream::once(open).try_flatten().inspect(move |piece| {
                    if let Ok(piece) = piece {
                        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                });
                Body::wrap_stream(pieces)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_say_their_place() {
        let mut headers = HeaderMap::new();
        let whole = Content::whole(Source::Bytes(Bytes::new()), 20, "a/b");
        Content::piece(Source::Bytes(Bytes::new()), 10, 5).describe(&mut headers);
        assert_eq!(headers[CONTENT_RANGE], "10-14");
        assert_eq!(headers[CONTENT_LENGTH], "5");
        headers.clear();
        whole.describe(&mut headers);
        assert!(!headers.contains_key(CONTENT_RANGE));
    }
}
