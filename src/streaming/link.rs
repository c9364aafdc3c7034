//! One client's connection, whichever way it is framed: numbered channels in both directions.
//!
//! A task reads and a task writes. What goes out waits in a bounded queue, so that a client that does not read holds back
//! only who writes to it. The session sees the end of the connection as [`Link::gone`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Frames that may wait for a slow client.
pub(super) const OUTBOUND_MAX: usize = 32;
/// Chunks of one channel that may wait for who reads them.
pub(super) const INBOUND_MAX: usize = 32;
/// Most bytes of one chunk.
pub(super) const CHUNK: usize = 32 << 10;
/// How long a client has to take what is left when a session is over.
const LINGER: Duration = Duration::from_secs(5);

/// Why a channel is reset: it is not wanted any more (SPDY's code for it).
const CANCEL: u32 = 5;

/// Something for the client.
#[derive(Debug)]
pub(super) enum Frame {
    Data {
        channel: u32,
        data: Bytes,
    },
    /// No more data on the channel.
    End {
        channel: u32,
    },
    /// The client's new channel is taken.
    Reply {
        channel: u32,
    },
    /// The channel is given up.
    Reset {
        channel: u32,
        reason: u32,
    },
    Ping(u32),
    /// The session is over.
    Close {
        failed: bool,
    },
}

/// When something last moved on a connection.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn touch(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Comes back when nothing has moved for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let end = *self.0.lock() + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The client is gone.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Gone;

/// Our direction of one channel. Dropping it unfinished resets the channel.
#[derive(Debug)]
pub(super) struct Output {
    channel: u32,
    frames: mpsc::Sender<Frame>,
    finished: bool,
    /// Cancelled when the client gave the channel up.
    pub(super) reset: CancellationToken,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Output {
    pub(super) fn new(
        channel: u32,
        frames: mpsc::Sender<Frame>,
        reset: CancellationToken,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Self {
        Self { channel, frames, finished: false, reset, _permit: permit }
    }

    /// Sends data; waits while the client does not read.
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(Gone),
            sent = self.frames.send(Frame::Data { channel: self.channel, data }) => sent.map_err(|_| Gone),
        }
    }

    /// Never says anything: the channel ends with the connection.
    pub(super) fn leave(mut self) {
        self.finished = true;
    }

    /// Says that nothing follows.
    pub(super) async fn finish(mut self) {
        self.finished = true;
        let _ = self.frames.send(Frame::End { channel: self.channel }).await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished && !self.reset.is_cancelled() {
            let _ = self.frames.try_send(Frame::Reset { channel: self.channel, reason: CANCEL });
        }
    }
}

/// The connection's tasks. Dropping it ends them and closes the connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Cancelled when the client is gone, or broke the protocol.
    pub(super) gone: CancellationToken,
    pub(super) activity: Activity,
    pub(super) frames: mpsc::Sender<Frame>,
    pub(super) reader: AbortOnDropHandle<()>,
    pub(super) writer: AbortOnDropHandle<()>,
}

impl Link {
    /// Lets the client take what is queued, closes our direction, and waits a while for the client to close its own: closing
    /// on unread data would destroy what is still under way to it.
    pub(super) async fn close(self, failed: bool) {
        let Self { frames, reader, writer, .. } = self;
        let _ = tokio::time::timeout(LINGER, async {
            let _ = frames.send(Frame::Close { failed }).await;
            drop(frames);
            let _ = writer.await;
            let _ = reader.await;
        })
        .await;
    }
}
