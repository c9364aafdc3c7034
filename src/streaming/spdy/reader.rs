//! Reads the client's frames and hands data to their streams.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{self, HEAD, Head, kind, reset};
use super::headers::Expander;
use super::queue::{Handed, Queue, Store};
use super::{Malformed, STREAMS_MAX, Stream, Stuck};
use crate::streaming::link::{Activity, CHUNK, Frame, Output, Peer};

/// Longest control frame: a SYN_STREAM's compressed headers.
const CONTROL_MAX: usize = 64 << 10;
/// A frame that was begun has to go on within this time.
const MID_FRAME: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(30) };

/// What the reader reports to.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) accepted: mpsc::Sender<Stream>,
    pub(super) frames: mpsc::WeakSender<Frame>,
    pub(super) activity: Activity,
    pub(super) gone: CancellationToken,
    pub(super) peer: Peer,
    pub(super) stuck: Stuck,
}

#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("reading: {0}")]
    Io(#[from] io::Error),
    #[error("the client stopped in the middle of a frame")]
    Stopped,
    #[error("the session is over")]
    Over,
    #[error("the client hung up, and nobody takes what it sent")]
    HungUp,
}

/// The client's direction of a stream.
#[derive(Debug)]
struct Half {
    queue: Queue,
    reset: CancellationToken,
    permit: Arc<OwnedSemaphorePermit>,
}

/// A stream in which the client has nothing more to say. It may still give up what it is told.
#[derive(Debug)]
struct HalfClosed {
    reset: CancellationToken,
    /// There as long as we have something to say.
    permit: Weak<OwnedSemaphorePermit>,
}

struct Reader<R> {
    io: BufReader<R>,
    ends: Ends,
    expander: Expander,
    streams: HashMap<u32, Half>,
    half_closed: HashMap<u32, HalfClosed>,
    places: Arc<Semaphore>,
    store: Store,
    last: u32,
}

/// Reads until the client is gone.
pub(super) async fn run(io: impl AsyncRead + Unpin, ends: Ends) {
    let gone = ends.gone.clone();
    let mut reader = Reader {
        io: BufReader::with_capacity(4096, io),
        ends,
        expander: Expander::new(),
        streams: HashMap::new(),
        half_closed: HashMap::new(),
        places: Arc::new(Semaphore::new(STREAMS_MAX)),
        store: Store::default(),
        last: 0,
    };
    let end = loop {
        match reader.frame().await {
            Ok(true) => {}
            Ok(false) => break None,
            Err(end) => break Some(end),
        }
    };
    if let Some(end) = end {
        tracing::debug!(reason = %end, "a SPDY connection ends");
        if let (End::Malformed(_), Some(frames)) = (&end, reader.ends.frames.upgrade()) {
            let _ = frames.try_send(Frame::Close { failed: true });
        }
    }
    gone.cancel();
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// One frame. `false` at the connection's end.
    async fn frame(&mut self) -> Result<bool, End> {
        let mut head = [0; HEAD];
        match self.io.read(&mut head).await {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let rest = head.get_mut(count..).unwrap_or_default();
                in_time(self.io.read_exact(rest)).await?;
            }
            Err(error) => return Err(error.into()),
        }
        match Head::parse(head)? {
            Head::Data { stream, fin, length } => {
                self.ends.activity.touch();
                self.data(stream, length).await?;
                if fin && let Some(half) = self.streams.remove(&stream) {
                    self.half_close(stream, half.reset, &half.permit);
                }
            }
            Head::Control { length, .. } if length > CONTROL_MAX => {
                return Err(Malformed("a control frame is too long").into());
            }
            Head::Control { kind, flags, length } => {
                let mut payload = vec![0; length];
                in_time(self.io.read_exact(&mut payload)).await?;
                self.control(kind, flags, &payload).await?;
            }
        }
        Ok(true)
    }

    /// Passes data on as it comes, in pieces: a frame may have 16 MiB. Waits while its reader does not take it; what nobody
    /// wants is read and dropped.
    async fn data(&mut self, stream: u32, mut length: usize) -> Result<(), End> {
        while length > 0 {
            let most = length.min(CHUNK);
            let mut piece = BytesMut::with_capacity(most);
            let read =
                async { (&mut self.io).take(u64::try_from(most).unwrap_or(0)).read_buf(&mut piece).await };
            let count = in_time(read).await?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            length -= count;
            self.ends.activity.touch();
            self.hand(stream, piece).await?;
        }
        Ok(())
    }

    /// Hands a piece to who reads the stream. Waits for room; how long depends on who else waits.
    async fn hand(&mut self, stream: u32, piece: BytesMut) -> Result<(), End> {
        let others = self.streams.len() > 1;
        let Some(half) = self.streams.get_mut(&stream) else { return Ok(()) };
        let handing = half.queue.hand(piece, &self.store, self.ends.stuck, others);
        match self.ends.peer.hand(handing).await.ok_or(End::HungUp)? {
            Handed::Taken => Ok(()),
            // What follows is dropped.
            Handed::Unwanted => {
                if let Some(half) = self.streams.remove(&stream) {
                    self.half_close(stream, half.reset, &half.permit);
                }
                Ok(())
            }
            Handed::Stuck => self.give_up(stream).await,
        }
    }

    /// Nothing more is taken from the client on this stream, but its reset still counts: it is of both directions (SPDY/3.1, 2.4.2
    /// and 2.6.3).
    fn half_close(&mut self, stream: u32, reset: CancellationToken, permit: &Arc<OwnedSemaphorePermit>) {
        if self.half_closed.len() >= 2 * STREAMS_MAX {
            // No more than `STREAMS_MAX` of them have their permits.
            self.half_closed.retain(|_, half| half.permit.strong_count() > 0);
        }
        self.half_closed.insert(stream, HalfClosed { reset, permit: Arc::downgrade(permit) });
    }

    /// Resets a stream whose data nobody takes.
    async fn give_up(&mut self, stream: u32) -> Result<(), End> {
        tracing::info!(stream, "nobody takes what is sent to a forwarded port: the connection is given up");
        if let Some(half) = self.streams.remove(&stream) {
            half.reset.cancel();
        }
        let frames = self.ends.frames.upgrade().ok_or(End::Over)?;
        let reset = Frame::Reset { channel: stream, reason: reset::FLOW_CONTROL_ERROR };
        frames.send(reset).await.map_err(|_| End::Over)
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<(), End> {
        match kind {
            kind::SYN_STREAM => self.open(flags, payload).await,
            kind::RST_STREAM => {
                let id = frame::word(payload, 0)? & 0x7fff_ffff;
                let open = self.streams.remove(&id).map(|half| half.reset);
                if let Some(reset) = open.or_else(|| self.half_closed.remove(&id).map(|half| half.reset)) {
                    reset.cancel();
                }
                Ok(())
            }
            kind::PING => {
                let id = frame::word(payload, 0)?;
                // Answers to pings of ours would be even; we send none. A client that does not read gets no answer.
                if let Some(frames) = self.ends.frames.upgrade().filter(|_| !id.is_multiple_of(2)) {
                    let _ = frames.try_send(Frame::Ping(id));
                }
                Ok(())
            }
            // The block must be read in any case: the next one builds on it.
            kind::HEADERS | kind::SYN_REPLY => {
                let block = payload.get(4..).ok_or(Malformed("a control frame is too short"))?;
                self.expander.read(block)?;
                Ok(())
            }
            kind::SETTINGS | kind::WINDOW_UPDATE | kind::GOAWAY => Ok(()),
            _ => Err(Malformed("a control frame of unknown type").into()),
        }
    }

    async fn open(&mut self, flags: u8, payload: &[u8]) -> Result<(), End> {
        let (id, block) = frame::syn_stream(flags, payload)?;
        let headers = self.expander.read(block)?;
        if id <= self.last {
            return Err(Malformed("stream ids do not grow").into());
        }
        self.last = id;
        self.ends.activity.touch();
        let frames = self.ends.frames.upgrade().ok_or(End::Over)?;
        let send = |frame| async { frames.send(frame).await.map_err(|_| End::Over) };
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            return send(Frame::Reset { channel: id, reason: reset::REFUSED_STREAM }).await;
        };
        let permit = Arc::new(permit);
        let (queue, input) = Queue::new();
        let token = CancellationToken::new();
        send(Frame::Reply { channel: id }).await?;
        let output = Output::new(id, frames.clone(), token.clone(), Some(Arc::clone(&permit)));
        if flags & frame::FIN == 0 {
            self.streams.insert(id, Half { queue, reset: token, permit });
        } else {
            self.half_close(id, token, &permit);
        }
        // When the session takes no streams any more, the dropped stream resets itself.
        let _ = self.ends.accepted.send(Stream { id, headers, input, output }).await;
        Ok(())
    }
}

async fn in_time<T>(read: impl Future<Output = io::Result<T>>) -> Result<T, End> {
    match tokio::time::timeout(MID_FRAME, read).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(End::Stopped),
    }
}
