//! The client of a command: its standard streams, however they are framed.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::link::{Gone, Link, Output, Peer};
use super::spdy::{self, Stuck};
use super::status::Outcome;
use super::websocket::{self, Codec};

/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// Channels by number, as WebSocket clients know them.
mod channel {
    pub(super) const STDIN: usize = 0;
    pub(super) const STDOUT: u32 = 1;
    pub(super) const STDERR: u32 = 2;
    pub(super) const ERROR: u32 = 3;
    pub(super) const RESIZE: usize = 4;
    pub(super) const COUNT: usize = 5;
}

/// Which streams a request asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// A client whose streams are open.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    /// Sizes of the client's terminal, as JSON.
    pub(super) resize: Option<mpsc::Receiver<Bytes>>,
    error: Output,
    /// Whether the client waits for a message to begin with.
    greets: bool,
    /// Whether the outcome is told as a `metav1.Status`.
    as_status: bool,
    pub(super) link: Link,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the client did not open its streams in time")]
    Late,
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("the client opened a stream of type {0:?} that nobody asked for")]
    Unasked(String),
}

impl Client {
    /// Waits for the streams of a SPDY client. `version` is that of the `channel.k8s.io` protocol.
    pub(super) async fn spdy<S>(io: S, peer: Peer, version: u8, wants: Wants) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (link, mut streams) = spdy::serve(io, peer, Stuck::Waits);
        let (mut stdin, mut stdout, mut stderr, mut resize, mut error) = (None, None, None, None, None);
        let with_resize = wants.tty && version >= 3;
        let mut missing = 1
            + usize::from(wants.stdin)
            + usize::from(wants.stdout)
            + usize::from(wants.stderr)
            + usize::from(with_resize);
        let opening = async {
            while missing > 0 {
                let stream = streams.recv().await.ok_or(Gone)?;
                let kind = stream.headers.get("streamtype");
                let slot_free = match kind {
                    "error" => error.replace(stream.output).is_none(),
                    "stdin" if wants.stdin => {
                        // Nothing is ever written to it, but it stays open until the session ends.
                        stdin.replace((stream.input, stream.output)).is_none()
                    }
                    "stdout" if wants.stdout => stdout.replace(stream.output).is_none(),
                    "stderr" if wants.stderr => stderr.replace(stream.output).is_none(),
                    "resize" if with_resize => resize.replace((stream.input, stream.output)).is_none(),
                    _ => false,
                };
                if !slot_free {
                    return Err(Error::Unasked(stream.headers.get("streamtype").to_owned()));
                }
                missing -= 1;
            }
            Ok(())
        };
        tokio::time::timeout(OPENING, opening).await.map_err(|_| Error::Late)??;
        let error = error.ok_or(Gone)?;
        let quiet = |half: Option<(mpsc::Receiver<Bytes>, Output)>| {
            half.map(|(input, output)| {
                output.leave();
                input
            })
        };
        let (stdin, resize) = (quiet(stdin), quiet(resize));
        Ok(Self { stdin, stdout, stderr, resize, error, greets: false, as_status: version >= 4, link })
    }

    /// A WebSocket client. Its channels need no opening; it waits for [`Client::greet`].
    pub(super) async fn websocket<S>(io: S, peer: Peer, version: u8, codec: Codec, wants: Wants) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut inputs: websocket::Inputs = (0..channel::COUNT).map(|_| None).collect();
        let mut open = |number: usize, wanted: bool| {
            wanted.then(|| {
                let (sender, receiver) = websocket::input();
                if let Some(slot) = inputs.get_mut(number) {
                    *slot = Some(sender);
                }
                receiver
            })
        };
        let stdin = open(channel::STDIN, wants.stdin);
        let resize = open(channel::RESIZE, wants.tty);
        let link = websocket::serve(io, peer, codec, inputs).await;
        let output = |number| Output::new(number, link.frames.clone(), CancellationToken::new(), None);
        let stdout = wants.stdout.then(|| output(channel::STDOUT));
        let stderr = wants.stderr.then(|| output(channel::STDERR));
        let error = output(channel::ERROR);
        Self { stdin, stdout, stderr, resize, error, greets: true, as_status: version >= 4, link }
    }

    /// Says that the streams are in place: WebSocket clients wait for a first message, and may rely on that what is printed
    /// from now on reaches them.
    pub(super) async fn greet(&self) {
        if self.greets {
            let first = self.stdout.as_ref().or(self.stderr.as_ref()).unwrap_or(&self.error);
            // A client that is gone is noticed by the link.
            let _ = first.send(Bytes::new()).await;
        }
    }

    /// Tells the outcome and ends the connection.
    pub(super) async fn finish(self, outcome: &Outcome) {
        let Self { stdout, stderr, error, as_status, link, .. } = self;
        let telling = async {
            for output in [stdout, stderr].into_iter().flatten() {
                output.finish().await;
            }
            let message = outcome.encode(as_status);
            if !message.is_empty() {
                let _ = error.send(message).await;
            }
            error.finish().await;
        };
        // One that we let go is told of it, if it reads; one that is gone takes nothing.
        tokio::select! {
            biased;
            () = telling => {}
            () = link.gone.cancelled() => {}
        }
        link.close(false).await;
    }
}
