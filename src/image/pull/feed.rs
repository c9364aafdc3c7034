//! Between the network and the thread that unpacks.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{Phase, Piece, Progress};
use crate::image::digest::Digest;
use crate::image::registry::Sink;
use crate::image::store::Ingest;
use crate::image::unpack;

/// Pieces on their way to the unpacking thread; when it is slow, the network waits.
pub(super) const PIECES: usize = 32;
/// Progress is told each time so much has come.
const STEP: u64 = 512 << 10;
/// Files are read in pieces of this size.
const BUFFER: usize = 256 << 10;

/// Collects a small blob; its size is bounded by its descriptor.
#[derive(Debug)]
pub(super) struct Collect(pub(super) Vec<u8>);

impl Sink for Collect {
    async fn take(&mut self, bytes: Bytes) -> bool {
        self.0.extend_from_slice(&bytes);
        true
    }
}

/// Hands pieces to the unpacking thread and tells of it.
#[derive(Debug)]
pub(super) struct Feed<'a> {
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) teller: Teller<'a>,
    pub(super) current: u64,
}

impl Sink for Feed<'_> {
    async fn take(&mut self, bytes: Bytes) -> bool {
        let before = self.current;
        self.current += bytes.len() as u64;
        if before / STEP != self.current / STEP {
            self.teller.tell(Phase::Downloading, self.current);
        }
        self.pieces.send(Piece::Data(bytes)).await.is_ok()
    }
}

/// Tells a pull's caller of one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Teller<'a> {
    pub(super) layer: Digest,
    pub(super) total: u64,
    pub(super) to: Option<&'a mpsc::Sender<Progress>>,
}

impl Teller<'_> {
    pub(super) fn tell(&self, phase: Phase, current: u64) {
        if let Some(to) = self.to {
            // A reader that is slow misses steps, it never holds the pull up.
            let _ = to.try_send(Progress { layer: self.layer, phase, current, total: self.total });
        }
    }
}

/// A layer's compressed bytes, each hashed once as it passes: first what an earlier transfer left, then what comes.
#[derive(Debug)]
pub(super) struct Source<L> {
    left_over: Option<L>,
    pieces: Option<mpsc::Receiver<Piece>>,
    ingest: Option<Ingest>,
    hasher: Sha256,
    count: Rc<Cell<u64>>,
    piece: Bytes,
}

impl<L: Read> Source<L> {
    /// From a file that is whole.
    pub(super) fn of_file(file: L) -> Self {
        Self::new(Some(file), None, None)
    }

    /// From what is there and what comes, kept in `ingest`.
    pub(super) fn of_transfer(left_over: Option<L>, pieces: mpsc::Receiver<Piece>, ingest: Ingest) -> Self {
        Self::new(left_over, Some(pieces), Some(ingest))
    }

    fn new(left_over: Option<L>, pieces: Option<mpsc::Receiver<Piece>>, ingest: Option<Ingest>) -> Self {
        Self { left_over, pieces, ingest, hasher: Sha256::new(), count: Rc::default(), piece: Bytes::new() }
    }

    /// How much has passed; shared with whoever bounds by it.
    pub(super) fn count(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.count)
    }

    /// Digest and size of all, and the file it is in.
    pub(super) fn finish(self) -> (Digest, u64, Option<Ingest>) {
        (Digest::from_hasher(self.hasher), self.count.get(), self.ingest)
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(file) = &mut self.left_over {
            let mut buffer = vec![0; BUFFER];
            let count = file.read(&mut buffer)?;
            if count > 0 {
                buffer.truncate(count);
                return Ok(Some(buffer.into()));
            }
            self.left_over = None;
        }
        let Some(pieces) = &mut self.pieces else { return Ok(None) };
        match pieces.blocking_recv() {
            Some(Piece::Data(bytes)) => {
                if let Some(ingest) = &mut self.ingest {
                    // A full disk is no fault of the content: it must not be taken for a broken archive.
                    ingest.write(&bytes).map_err(|source| {
                        let what = "keeping the layer's content";
                        io::Error::other(unpack::Error::Directory { what, source })
                    })?;
                }
                Ok(Some(bytes))
            }
            Some(Piece::End) => {
                self.pieces = None;
                Ok(None)
            }
            None => Err(io::Error::other(unpack::Error::Aborted)),
        }
    }
}

impl<L: Read> BufRead for Source<L> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            let Some(piece) = self.next()? else { break };
            self.hasher.update(&piece);
            self.count.set(self.count.get() + piece.len() as u64);
            self.piece = piece;
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        self.piece.advance(count.min(self.piece.len()));
    }
}

impl<L: Read> Read for Source<L> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut piece = self.fill_buf()?;
        let count = piece.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
