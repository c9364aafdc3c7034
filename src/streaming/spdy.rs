//! SPDY/3.1 as `moby/spdystream` speaks it, which every Kubernetes client does: a server that takes streams.
//!
//! What that dialect leaves out is left out here too: no flow control (WINDOW_UPDATE and SETTINGS are read and ignored: TCP
//! alone holds a sender back), no server push, no priorities, no headers after the first.

mod dictionary;
mod frame;
mod headers;
mod queue;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::link::{Activity, Link, OUTBOUND_MAX, Output, Peer};
pub(super) use headers::Headers;

/// Streams of one connection at once: two for each connection that is forwarded.
pub(super) const STREAMS_MAX: usize = 2048;

/// What happens when nobody takes the data of one stream: there is no way to tell the client to hold back only that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// The connection waits: its streams are those of one command.
    Waits,
    /// The stream gets more room, then it is reset: there are others, of other connections.
    IsReset,
}

/// The client broke the protocol.
#[derive(Debug, thiserror::Error)]
#[error("malformed SPDY: {0}")]
pub(super) struct Malformed(&'static str);

/// A stream that the client opened.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) headers: Headers,
    /// Ends when the client has said all.
    pub(super) input: mpsc::Receiver<bytes::Bytes>,
    pub(super) output: Output,
}

/// Serves a connection: its streams come out of the receiver.
pub(super) fn serve(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    peer: Peer,
    stuck: Stuck,
) -> (Link, mpsc::Receiver<Stream>) {
    let (input, output) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(OUTBOUND_MAX);
    let (accepted, streams) = mpsc::channel(16);
    let (gone, activity) = (CancellationToken::new(), Activity::new());
    let writer = writer::run(output, queue, activity.clone(), gone.clone());
    let reader = reader::run(
        input,
        reader::Ends {
            accepted,
            // Weak: the queue must end when the session drops it, though the reader still waits for the client.
            frames: frames.downgrade(),
            activity: activity.clone(),
            gone: gone.clone(),
            peer,
            stuck,
        },
    );
    let link = Link {
        gone,
        cut: Arc::default(),
        activity,
        frames,
        reader: AbortOnDropHandle::new(tokio::spawn(reader)),
        writer: AbortOnDropHandle::new(tokio::spawn(writer)),
    };
    (link, streams)
}
