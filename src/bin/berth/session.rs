//! A command or container with us at its streams: the WebSocket protocol that kubectl speaks (`v5.channel.k8s.io`,
//! KEP-4006), with berthd's streaming server on the other side.
//!
//! A message is a channel's number and data: 0 standard input, 1 standard output, 2 standard error, 3 the outcome as
//! `metav1.Status`, 4 the terminal's size. Channel 255 closes the channel that its one byte of data names.

mod keys;
mod outcome;
pub(crate) mod terminal;
mod tls;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use self::keys::Detach;
pub(crate) use self::outcome::Outcome;
use self::terminal::Terminal;
pub(crate) use self::tls::TlsOptions;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// The daemon accepts at once or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CHUNK: usize = 16 << 10;
/// Status of an outcome: a line of JSON.
const LONGEST_OUTCOME: usize = 1 << 20;

/// A connection, in the clear or by TLS.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug> Wire for T {}

type Socket = WebSocketStream<Box<dyn Wire>>;

/// An open session.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Socket,
    /// What came with or before the greeting.
    first: Option<Bytes>,
}

impl Session {
    /// Connects to where the daemon said; comes back when the streams are in place.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let connecting = connect(url);
        let mut socket = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| anyhow!("the streaming server did not answer in {CONNECT_TIMEOUT:?}"))
            .and_then(|connected| connected)
            .with_context(|| format!("connecting to berthd's streaming server at {}", shown(url)))?;
        let first = loop {
            match socket.next().await {
                Some(Ok(Message::Binary(message))) => break message,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => bail!("berthd's streaming server ended the session before it began"),
            }
        };
        Ok(Self { socket, first: Some(first) })
    }

    /// Passes everything on, both ways, until the other side ends or the person detaches.
    pub(crate) async fn attend(self, input: bool, terminal: Option<&Terminal>) -> Result<Outcome> {
        let sizes = terminal.map(Terminal::sizes).transpose()?;
        let keys = terminal.map(|_| Detach::default());
        let (sink, messages) = self.socket.split();
        // Beside each other: a command that prints reads on only when that is taken, and what we send waits for it to read.
        tokio::select! {
            outcome = printed(messages, self.first) => outcome,
            left = typed(Typed(sink), input, sizes, keys) => left.map(|()| Outcome::Detached),
        }
    }
}

/// Prints what comes until the other side ends.
async fn printed(mut messages: SplitStream<Socket>, first: Option<Bytes>) -> Result<Outcome> {
    let mut outcome = Vec::new();
    if let Some(first) = first {
        show(&first, &mut outcome)?;
    }
    loop {
        match messages.next().await {
            Some(Ok(Message::Binary(message))) => show(&message, &mut outcome)?,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => break,
            Some(Err(_)) if !outcome.is_empty() => break,
            // The daemon was killed, or is somewhere else and the way there broke.
            Some(Err(
                WebSocketError::ConnectionClosed
                | WebSocketError::AlreadyClosed
                | WebSocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake)
                | WebSocketError::Io(_),
            )) => break,
            Some(Ok(_)) => bail!("berthd's streaming server sent a message of an unknown kind"),
            Some(Err(error)) => {
                return Err(error).context("the connection to berthd's streaming server broke");
            }
        }
    }
    Outcome::read(&outcome)
}

/// Sends what is typed, and the terminal's sizes. Comes back when the person detaches.
async fn typed(
    mut to: Typed,
    input: bool,
    mut sizes: Option<terminal::Sizes>,
    mut keys: Option<Detach>,
) -> Result<()> {
    let mut stdin = tokio::io::stdin();
    let (mut buffer, mut reading) = (vec![0; CHUNK], input);
    if let Some(size) = sizes.as_ref().and_then(terminal::Sizes::now) {
        to.send(RESIZE, size.as_bytes()).await?;
    }
    loop {
        tokio::select! {
            read = stdin.read(&mut buffer), if reading => {
                let typed = buffer.get(..read.context("reading standard input")?).unwrap_or_default();
                if typed.is_empty() {
                    reading = false;
                    to.message(&[CLOSE, STDIN]).await?;
                    continue;
                }
                let (pass, gone) = match &mut keys {
                    Some(keys) => keys.filter(typed),
                    None => (typed.to_vec(), false),
                };
                if !pass.is_empty() {
                    to.send(STDIN, &pass).await?;
                }
                if gone {
                    return Ok(());
                }
            }
            size = next(&mut sizes) => to.send(RESIZE, size.as_bytes()).await?,
        }
    }
}

/// Our direction of the connection.
#[derive(Debug)]
struct Typed(SplitSink<Socket, Message>);

impl Typed {
    async fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        self.message(&[&[channel], data].concat()).await
    }

    async fn message(&mut self, message: &[u8]) -> Result<()> {
        match self.0.send(Message::binary(Bytes::copy_from_slice(message))).await {
            // The other side has ended: what it said last is still to be read.
            Err(
                WebSocketError::ConnectionClosed
                | WebSocketError::AlreadyClosed
                | WebSocketError::Protocol(_),
            ) => Ok(()),
            Err(WebSocketError::Io(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            sent => sent.context("writing to berthd's streaming server"),
        }
    }
}

async fn connect(url: &str) -> Result<Socket> {
    let (by_tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => bail!("its address is neither http:// nor https://"),
    };
    // The handshake is ours: the scheme only says that there is to be one.
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let stream = TcpStream::connect(&authority).await?;
    // Keys are single bytes: each is to go at once.
    stream.set_nodelay(true)?;
    let stream: Box<dyn Wire> = match by_tls {
        true => {
            let host = request.uri().host().map(ToString::to_string).unwrap_or_default();
            Box::new(tls::connect(&host, stream).await?)
        }
        false => Box::new(stream),
    };
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    Ok(socket)
}

/// Its address; the rest of the URL is a secret.
fn shown(url: &str) -> &str {
    url.split('/').nth(2).unwrap_or(url)
}

/// Prints what the other side printed, collects the outcome.
fn show(message: &[u8], outcome: &mut Vec<u8>) -> Result<()> {
    let Some((channel, data)) = message.split_first() else { return Ok(()) };
    match *channel {
        _ if data.is_empty() => {}
        STDOUT => {
            let mut out = io::stdout().lock();
            out.write_all(data)?;
            out.flush()?;
        }
        STDERR => io::stderr().write_all(data)?,
        ERROR if outcome.len() + data.len() <= LONGEST_OUTCOME => outcome.extend_from_slice(data),
        _ => {}
    }
    Ok(())
}

async fn next(sizes: &mut Option<terminal::Sizes>) -> String {
    match sizes {
        Some(sizes) => sizes.changed().await,
        None => std::future::pending().await,
    }
}
