//! A client of Exec and Attach.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::task::AbortOnDropHandle;

use super::spdy::{self, Spdy};
use super::{BoxIo, Io, Output, Streams, spdy_headers, upgrade};
use crate::support::World;

/// What a session goes over, with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Spdy(&'static str),
    WebSocket(&'static str),
}

impl Wire {
    pub(crate) const SPDY: Self = Self::Spdy("v4.channel.k8s.io");
    pub(crate) const V5: Self = Self::WebSocket("v5.channel.k8s.io");
    pub(crate) const V4: Self = Self::WebSocket("v4.channel.k8s.io");
    pub(crate) const BASE64: Self = Self::WebSocket("v4.base64.channel.k8s.io");
    pub(crate) const EVERY: [Self; 4] = [Self::SPDY, Self::V5, Self::V4, Self::BASE64];

    /// Whether standard input can end while output goes on.
    pub(crate) fn half_closes(self) -> bool {
        matches!(self, Self::Spdy(_)) || self == Self::V5
    }
}

type Sink = Arc<tokio::sync::Mutex<SplitSink<WebSocketStream<BoxIo>, Message>>>;

/// Something the client writes to.
#[derive(Clone)]
pub(crate) enum Input {
    Spdy(spdy::Input),
    WebSocket { sink: Sink, channel: u8, base64: bool },
}

impl Input {
    pub(crate) async fn write(&self, data: &[u8]) {
        self.try_write(data).await.unwrap();
    }

    pub(crate) async fn try_write(&self, data: &[u8]) -> Result<(), String> {
        match self {
            Self::Spdy(input) => input.write(data).await.map_err(|error| error.to_string()),
            Self::WebSocket { sink, channel, base64 } => {
                for part in data.chunks(32 << 10) {
                    let message = if *base64 {
                        Message::text(format!("{channel}{}", STANDARD.encode(part)))
                    } else {
                        Message::binary([&[*channel], part].concat())
                    };
                    sink.lock().await.send(message).await.map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    }

    /// Nothing follows.
    pub(crate) async fn close(&self) {
        match self {
            Self::Spdy(input) => input.close().await,
            Self::WebSocket { sink, channel, .. } => {
                sink.lock().await.send(Message::binary(vec![255, *channel])).await.unwrap();
            }
        }
    }
}

/// A client. Dropping it closes its connection.
pub(crate) struct Session {
    pub(crate) stdin: Input,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) error: Output,
    resize: Input,
    _reader: Option<AbortOnDropHandle<()>>,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: Value,
}

impl Ended {
    /// Where client-go looks for it: 0 on success.
    pub(crate) fn exit_code(&self) -> i32 {
        if self.status["status"] == "Success" {
            return 0;
        }
        assert_eq!(self.status["reason"], "NonZeroExitCode", "{self:?}");
        let cause = &self.status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{self:?}");
        cause["message"].as_str().unwrap().parse().unwrap()
    }
}

impl Session {
    /// A command's session.
    pub(crate) async fn exec(
        world: &World,
        wire: Wire,
        id: &str,
        command: &[&str],
        streams: Streams,
    ) -> Self {
        let url = world.exec_url(id, command, streams).await.unwrap();
        Self::over(world.dial(&url), &url, wire, streams).await
    }

    /// A session at a container's own process.
    pub(crate) async fn attach(world: &World, wire: Wire, id: &str, streams: Streams) -> Self {
        let url = world.attach_url(id, streams).await.unwrap();
        Self::over(world.dial(&url), &url, wire, streams).await
    }

    /// The session of a URL over a connection that is there.
    pub(crate) async fn over<I: Io + 'static>(io: I, url: &str, wire: Wire, streams: Streams) -> Self {
        match wire {
            Wire::Spdy(protocol) => {
                let (io, headers) = upgrade(io, url, &spdy_headers(protocol)).await.unwrap();
                assert_eq!(headers["x-stream-protocol-version"], protocol);
                Self::spdy(Spdy::new(io), streams).await
            }
            Wire::WebSocket(protocol) => Self::websocket(Box::new(io), url, protocol).await,
        }
    }

    async fn spdy(mut spdy: Spdy, streams: Streams) -> Self {
        let closed = || Output(mpsc::channel(1).1);
        // A server that takes streams is attached already.
        let (error_input, error) = spdy.open_taken(&[("streamtype", "error")]).await;
        error_input.close().await;
        let mut wanted = async |kind, wanted: bool| {
            if wanted { Some(spdy.open(&[("streamtype", kind)]).await) } else { None }
        };
        let stdin = wanted("stdin", streams.stdin).await.map(|(input, _)| input);
        let stdout = wanted("stdout", streams.stdout).await;
        let stderr = wanted("stderr", streams.stderr).await;
        let resize = wanted("resize", streams.tty).await.map(|(input, _)| input);
        // Writing where nothing was opened would be a mistake of the test.
        let input = |input: Option<spdy::Input>| Input::Spdy(input.unwrap_or_else(|| error_input.clone()));
        Self {
            stdin: input(stdin),
            stdout: stdout.map_or_else(closed, |(_, output)| output),
            stderr: stderr.map_or_else(closed, |(_, output)| output),
            error,
            resize: input(resize),
            _reader: None,
        }
    }

    async fn websocket(io: BoxIo, url: &str, protocol: &str) -> Self {
        let base64 = protocol.contains("base64");
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let (socket, answer) = tokio_tungstenite::client_async(request, io).await.unwrap();
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], protocol);
        let (sink, mut stream) = socket.split();
        let (senders, outputs): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel::<Bytes>(4)).unzip();
        // The first message says that the streams are in place.
        let first = futures::stream::iter(stream.next().await);
        let reader = tokio::spawn(async move {
            let mut stream = first.chain(stream);
            while let Some(Ok(message)) = stream.next().await {
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Text(text) => text.into(),
                    Message::Close(_) => return,
                    _ => continue,
                };
                let (channel, data) = if base64 {
                    (data[0] - b'0', STANDARD.decode(&data[1..]).unwrap().into())
                } else {
                    (data[0], data.slice(1..))
                };
                let _ = senders[usize::from(channel) - 1].send(data).await;
            }
        });
        let sink = Arc::new(tokio::sync::Mutex::new(sink));
        let input = |channel| Input::WebSocket { sink: Arc::clone(&sink), channel, base64 };
        let mut outputs = outputs.into_iter().map(Output);
        let mut output = || outputs.next().unwrap();
        Self {
            stdin: input(0),
            stdout: output(),
            stderr: output(),
            error: output(),
            resize: input(4),
            _reader: Some(AbortOnDropHandle::new(reader)),
        }
    }

    pub(crate) async fn resize(&self, width: u16, height: u16) {
        self.resize.write(format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes()).await;
    }

    /// Reads all until the end.
    pub(crate) async fn end(mut self) -> Ended {
        let reading = async { tokio::join!(self.stdout.rest(), self.stderr.rest(), self.error.rest()) };
        let read = tokio::time::timeout(crate::support::patience(60), reading).await;
        let (stdout, stderr, error) = read.expect("the session does not end");
        let status = serde_json::from_slice(&error)
            .unwrap_or_else(|_| panic!("no status: {:?}", String::from_utf8_lossy(&error)));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { stdout: text(&stdout), stderr: text(&stderr), status }
    }
}
