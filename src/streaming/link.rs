//! One client's connection, whichever way it is framed: numbered channels in both directions.
//!
//! A task reads and a task writes. What goes out waits in a bounded queue, so that a client that does not read holds back
//! only who writes to it. The session sees the end of the connection as [`Link::gone`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
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

/// While nobody takes what a client sent, how often to look whether it is still there.
const LOOK: Duration = Duration::from_secs(1);

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

    /// When that was.
    pub(super) fn last(&self) -> Instant {
        *self.0.lock()
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

/// The client's socket. As long as somebody reads from it, reading tells that the client is gone; behind data that nobody
/// takes its end would not be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer(Option<Arc<OwnedFd>>);

impl Peer {
    /// Another descriptor of `socket`. Without one (no descriptors are left) the client's end is seen late.
    pub(super) fn of(socket: impl AsFd) -> Self {
        Self(rustix::io::fcntl_dupfd_cloexec(socket, 3).ok().map(Arc::new))
    }

    fn hung_up(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        // Hang-ups and errors are reported whether asked for or not.
        let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Hands something the client sent to who reads it; `None` when the client hung up and it was not taken for a while
    /// after that.
    pub(super) async fn hand<T>(&self, handing: impl Future<Output = T>) -> Option<T> {
        let hung_up = async {
            while !self.hung_up() {
                tokio::time::sleep(LOOK).await;
            }
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            biased;
            handed = handing => Some(handed),
            () = hung_up => None,
        }
    }
}

/// The client is gone.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Gone;

/// Why we end a session whose client is still there.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Cut {
    /// The daemon's own end.
    #[error("berthd is being stopped")]
    Stops,
    /// Traffic is what keeps it.
    #[error("nothing moved for {0:?} (`streaming.idle_timeout`)")]
    Idle(Duration),
}

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

    /// Says that nothing follows. A client that gave the channel up is told nothing.
    pub(super) async fn finish(mut self) {
        if !self.reset.is_cancelled() {
            let _ = self.frames.send(Frame::End { channel: self.channel }).await;
        }
        // Not before: one that is cut off while it waits for room resets the channel.
        self.finished = true;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.finished || self.reset.is_cancelled() {
            return;
        }
        let reset = Frame::Reset { channel: self.channel, reason: CANCEL };
        // A client that reads slowly hears of it as well: it may wait for nothing else. What waits here ends with the connection.
        if let Err(TrySendError::Full(reset)) = self.frames.try_send(reset)
            && let Ok(runtime) = Handle::try_current()
        {
            let frames = self.frames.clone();
            runtime.spawn(async move {
                let _ = frames.send(reset).await;
            });
        }
    }
}

/// The connection's tasks. Dropping it ends them and closes the connection.
#[derive(Debug)]
pub(super) struct Link {
    /// Cancelled when the client is gone, or broke the protocol.
    pub(super) gone: CancellationToken,
    /// Set before that when it is not the client who goes.
    pub(super) cut: Arc<OnceLock<Cut>>,
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
