//! What of a stream waits for its reader.
//!
//! A stream has room for that. When the room is used up, reading stops, and TCP holds the client back: with it all streams of the
//! connection, and the ones that the client opens behind the data that nobody takes. For a command that is right, its streams
//! belong together. Forwarded connections don't: soon the stuck one gets room out of a larger store, so that what is behind its
//! data comes to light; when that is used up as well, it is reset.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::Stuck;
use crate::streaming::link::Activity;

/// Bytes of one stream that may wait for who reads them.
const ROOM: usize = 256 << 10;
/// What the stuck streams of one connection may have beyond that. More than the sockets between here and the client hold (tcp(7):
/// `tcp_rmem` up to 6 MiB, `tcp_wmem` up to 4): what the client opens behind the data comes into sight.
const STORE: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };
/// The same for all connections of the daemon together.
const STORES: usize = 64 << 20;
/// What a piece counts at least: its number is bounded as well.
const PIECE_MIN: usize = 1 << 10;
/// How long streams wait for another one before it gets more room.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };
/// How long a stream that got it, and used it up, holds up others…
const STUCK: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };
/// …and those that the client may have opened, when there is none that is known.
const STUCK_ALONE: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(300) };

/// See [`STORES`].
static EVERYBODYS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(STORES)));

/// Room that the streams of one connection share.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Semaphore>);

impl Default for Store {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STORE)))
    }
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// It waits for the reader, or is with it.
    Taken,
    /// There is no reader any more.
    Unwanted,
    /// The reader takes nothing, and there is no room.
    Stuck,
}

/// The end at which a stream's data comes in.
#[derive(Debug)]
pub(super) struct Queue {
    input: mpsc::Sender<Bytes>,
    room: Arc<Semaphore>,
    /// Touched when its reader is done with a piece.
    taken: Activity,
    /// Since when there was no room at once.
    full: Option<Instant>,
}

impl Queue {
    /// A queue, and the reader's end of it.
    pub(super) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        // The room is the bound; the channel takes all that has got some.
        let (input, output) = mpsc::channel((ROOM + STORE) / PIECE_MIN);
        let room = Arc::new(Semaphore::new(ROOM));
        (Self { input, room, taken: Activity::new(), full: None }, output)
    }

    /// Hands a piece to the reader. Waits for room; how long depends on whether there are other streams.
    pub(super) async fn hand(
        &mut self,
        piece: BytesMut,
        store: &Store,
        stuck: Stuck,
        others: bool,
    ) -> Handed {
        let places = u32::try_from(piece.len().max(PIECE_MIN)).unwrap_or(u32::MAX);
        let room = match Arc::clone(&self.room).try_acquire_many_owned(places) {
            Ok(permit) => {
                self.full = None;
                Room::Own { _permit: permit }
            }
            Err(_) => {
                let full = *self.full.get_or_insert_with(Instant::now);
                let waiting = async {
                    match stuck {
                        Stuck::Waits => own(&self.room, places).await.ok(),
                        Stuck::IsReset => self.wait(places, full, store, others).await,
                    }
                };
                tokio::select! {
                    room = waiting => match room {
                        Some(room) => room,
                        None => return Handed::Stuck,
                    },
                    () = self.input.closed() => return Handed::Unwanted,
                }
            }
        };
        let piece = Waiting { piece, taken: self.taken.clone(), _room: room };
        match self.input.send(Bytes::from_owner(piece)).await {
            Ok(()) => Handed::Taken,
            Err(_) => Handed::Unwanted,
        }
    }

    /// Room, which there was not at once. `None`: the stream is stuck.
    async fn wait(&self, places: u32, full: Instant, store: &Store, others: bool) -> Option<Room> {
        // Who reads slowly reads.
        let since = || full.max(self.taken.last());
        let limit = if others { STUCK } else { STUCK_ALONE };
        let room = own(&self.room, places);
        tokio::pin!(room);
        tokio::select! {
            biased;
            room = &mut room => return room.ok(),
            () = tokio::time::sleep_until(since() + PATIENCE) => {}
        }
        let stored = stored(store, places);
        tokio::pin!(stored);
        loop {
            let end = since() + limit;
            tokio::select! {
                biased;
                room = &mut room => return room.ok(),
                room = &mut stored => return room.ok(),
                () = tokio::time::sleep_until(end) => {
                    if since() + limit <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }
}

async fn own(room: &Arc<Semaphore>, places: u32) -> Result<Room, AcquireError> {
    Arc::clone(room).acquire_many_owned(places).await.map(|permit| Room::Own { _permit: permit })
}

async fn stored(store: &Store, places: u32) -> Result<Room, AcquireError> {
    let ours = Arc::clone(&store.0).acquire_many_owned(places).await?;
    let all = Arc::clone(&EVERYBODYS).acquire_many_owned(places).await?;
    Ok(Room::Stored { _permits: [ours, all] })
}

/// A piece on its way to its reader. The room it takes is free again when the last of it is dropped.
struct Waiting {
    piece: BytesMut,
    taken: Activity,
    _room: Room,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.taken.touch();
    }
}

/// Where a piece waits.
enum Room {
    Own { _permit: OwnedSemaphorePermit },
    Stored { _permits: [OwnedSemaphorePermit; 2] },
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}
