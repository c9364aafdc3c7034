//! WebSocket in the two ways Kubernetes clients use it: messages whose first byte is a channel number, and a tunnel for
//! another protocol's bytes.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::link::{Activity, CHUNK, Frame, INBOUND_MAX, Link, OUTBOUND_MAX, Peer};

/// Longest message of a client.
const MESSAGE_MAX: usize = 4 << 20;
/// First byte of a message that closes the channel of its second byte (since version 5).
const CLOSE_CHANNEL: u8 = 255;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codec {
    /// Text messages: the channel as a digit, then base64.
    pub(super) base64: bool,
    /// Channels can be closed one by one.
    pub(super) closes: bool,
}

/// Reader's ends of the client's channels, by number; `None` where the client has nothing to say.
pub(super) type Inputs = Vec<Option<mpsc::Sender<Bytes>>>;

/// A channel into the session, as wide as all of them.
pub(super) fn input() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(INBOUND_MAX)
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
        .read_buffer_size(CHUNK)
        .write_buffer_size(0)
        .max_write_buffer_size(8 << 20);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves a connection of numbered channels.
pub(super) async fn serve<S>(io: S, peer: Peer, codec: Codec, inputs: Inputs) -> Link
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = accept(io).await.split();
    let (frames, queue) = mpsc::channel(OUTBOUND_MAX);
    let (gone, activity) = (CancellationToken::new(), Activity::new());
    let writer = write(sink, queue, codec, activity.clone(), gone.clone());
    let reader = {
        let (gone, activity) = (gone.clone(), activity.clone());
        async move {
            if let Err(error) = read(stream, &peer, codec, inputs, &activity).await {
                tracing::debug!(%error, "a WebSocket connection ends");
            }
            gone.cancel();
        }
    };
    Link {
        gone,
        cut: Arc::default(),
        activity,
        frames,
        reader: AbortOnDropHandle::new(tokio::spawn(reader)),
        writer: AbortOnDropHandle::new(tokio::spawn(writer)),
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    WebSocket(#[from] Box<tungstenite::Error>),
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    #[error("the client hung up, and nobody takes what it sent")]
    HungUp,
}

impl From<tungstenite::Error> for Error {
    fn from(error: tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<S>>,
    peer: &Peer,
    codec: Codec,
    mut inputs: Inputs,
    activity: &Activity,
) -> Result<(), Error> {
    while let Some(message) = stream.next().await {
        let data = match message? {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            Message::Close(_) => return Ok(()),
            _ => continue,
        };
        activity.touch();
        let Some((channel, data)) = decode(codec, data)? else { continue };
        if codec.closes && channel == CLOSE_CHANNEL {
            let [channel] = data[..] else { return Err(Error::Malformed("a close names one channel")) };
            let input = inputs.get_mut(usize::from(channel));
            input.ok_or(Error::Malformed("a close names a channel that is none"))?.take();
            continue;
        }
        if let Some(input) = inputs.get_mut(usize::from(channel))
            && let Some(sender) = input
            && !data.is_empty()
            && peer.hand(sender.send(data)).await.ok_or(Error::HungUp)?.is_err()
        {
            *input = None;
        }
    }
    Ok(())
}

/// Channel and data; `None` for an empty message, which means nothing.
fn decode(codec: Codec, mut message: Bytes) -> Result<Option<(u8, Bytes)>, Error> {
    let Some(first) = message.first().copied() else { return Ok(None) };
    let data = message.split_off(1);
    if !codec.base64 {
        return Ok(Some((first, data)));
    }
    let channel = first.wrapping_sub(b'0');
    let data = STANDARD.decode(&data).map_err(|_| Error::Malformed("not base64"))?;
    Ok(Some((channel, data.into())))
}

fn encode(codec: Codec, channel: u32, data: &[u8]) -> Message {
    let channel = u8::try_from(channel).unwrap_or(u8::MAX);
    if codec.base64 {
        let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
        text.push(char::from(channel.wrapping_add(b'0')));
        STANDARD.encode_string(data, &mut text);
        return Message::Text(text.into());
    }
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Frame>,
    codec: Codec,
    activity: Activity,
    gone: CancellationToken,
) {
    while let Some(frame) = queue.recv().await {
        let sent = match frame {
            Frame::Data { channel, data } => sink.send(encode(codec, channel, &data)).await,
            Frame::Close { failed } => {
                let code = if failed { CloseCode::Error } else { CloseCode::Normal };
                let _ = sink.send(Message::Close(Some(CloseFrame { code, reason: "".into() }))).await;
                return;
            }
            // Nothing on the wire says these here.
            Frame::End { .. } | Frame::Reply { .. } | Frame::Reset { .. } | Frame::Ping(_) => continue,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "writing to a WebSocket client");
            gone.cancel();
            return;
        }
        activity.touch();
    }
}

/// A byte stream that goes through WebSocket messages.
pub(super) struct Tunnel {
    /// Our end of the stream.
    pub(super) io: DuplexStream,
    /// Copies both ways until both ends are closed.
    pub(super) task: AbortOnDropHandle<()>,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// Opens a tunnel over a connection.
pub(super) async fn tunnel<S>(io: S) -> Tunnel
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = accept(io).await.split();
    let (ours, theirs) = tokio::io::duplex(2 * CHUNK);
    let (mut from_session, mut to_session) = tokio::io::split(theirs);
    let inward = async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => {
                    if to_session.write_all(&data).await.is_err() {
                        break;
                    }
                }
                Message::Ping(_) | Message::Pong(_) => {}
                _ => break,
            }
        }
        let _ = to_session.shutdown().await;
    };
    let outward = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match from_session.read_buf(&mut buffer).await {
                Ok(1..) => {
                    if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        let _ =
            sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await;
    };
    let task = tokio::spawn(async move {
        tokio::join!(inward, outward);
    });
    Tunnel { io: ours, task: AbortOnDropHandle::new(task) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RAW: Codec = Codec { base64: false, closes: true };
    const BASE64: Codec = Codec { base64: true, closes: false };

    #[test]
    fn messages_read_back() {
        for codec in [RAW, BASE64] {
            let message = encode(codec, 3, b"\x00\xffdata").into_data();
            assert_eq!(decode(codec, message).unwrap().unwrap(), (3, Bytes::from_static(b"\x00\xffdata")));
        }
        assert!(decode(RAW, Bytes::new()).unwrap().is_none());
        assert!(decode(BASE64, Bytes::from_static(b"0!!")).is_err());
    }

    async fn session(codec: Codec) -> (WebSocketStream<DuplexStream>, mpsc::Receiver<Bytes>, Link) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (sender, stdin) = input();
        let link = serve(server, Peer::default(), codec, vec![Some(sender), None]).await;
        (WebSocketStream::from_raw_socket(client, Role::Client, None).await, stdin, link)
    }

    #[tokio::test]
    async fn a_channel_is_closed_by_itself() {
        let (mut client, mut stdin, link) = session(RAW).await;
        client.send(Message::binary(&b"\x00hello"[..])).await.unwrap();
        client.send(Message::binary(&b"\x09nobody"[..])).await.unwrap();
        client.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
        assert_eq!(stdin.recv().await.unwrap(), "hello");
        assert!(stdin.recv().await.is_none());
        assert!(!link.gone.is_cancelled());
        client.close(None).await.unwrap();
        link.gone.cancelled().await;
    }

    #[tokio::test]
    async fn an_oversized_message_ends_the_session() {
        let (mut client, mut stdin, link) = session(RAW).await;
        tokio::spawn(async move { while stdin.recv().await.is_some() {} });
        let sending = client.send(Message::binary(vec![0; MESSAGE_MAX + 1]));
        // The server reads no more of it, so that sending need not end.
        let (_, ()) = tokio::join!(
            tokio::time::timeout(std::time::Duration::from_secs(5), sending),
            link.gone.cancelled()
        );
    }

    #[tokio::test]
    async fn malformed_closes_end_the_session() {
        for message in [&b"\xff"[..], b"\xff\x00\x00", b"\xff\x07"] {
            let (mut client, _stdin, link) = session(RAW).await;
            client.send(Message::binary(message)).await.unwrap();
            link.gone.cancelled().await;
        }
    }
}
