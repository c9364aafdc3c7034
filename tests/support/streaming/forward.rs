//! A client of PortForward: SPDY, by itself or through a WebSocket tunnel.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::spdy::{Input, Spdy};
use super::{BoxIo, Io, Output, spdy_headers, upgrade};
use crate::support::World;

/// Connections to ports of a pod, all over one connection to the daemon.
pub(crate) struct Forward {
    pub(crate) spdy: Spdy,
    request: u32,
}

/// One connection to a port.
pub(crate) struct Pipe {
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) error: Output,
}

impl Forward {
    /// Over SPDY, or through WebSocket when `tunnel` is set.
    pub(crate) async fn open(world: &World, pod: &str, tunnel: bool) -> Self {
        let url = world.forward_url(pod).await.unwrap();
        Self::over(world.dial(&url), &url, tunnel).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn over<I: Io + 'static>(io: I, url: &str, tunnel: bool) -> Self {
        let io = if tunnel {
            through(io, url).await
        } else {
            upgrade(io, url, &spdy_headers("portforward.k8s.io")).await.unwrap().0
        };
        Self { spdy: Spdy::new(io), request: 0 }
    }

    /// A connection to `port` on the pod's loopback.
    pub(crate) async fn connect(&mut self, port: u16) -> Pipe {
        let (port, request) = (port.to_string(), self.request.to_string());
        self.request += 1;
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestID", request.as_str())];
        let (error_input, error) = self.spdy.open(&headers("error")).await;
        error_input.close().await;
        let (input, output) = self.spdy.open(&headers("data")).await;
        Pipe { input, output, error }
    }
}

/// A byte stream in the binary messages of a WebSocket.
async fn through<I: Io + 'static>(io: I, url: &str) -> BoxIo {
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    let protocol = "SPDY/3.1+portforward.k8s.io";
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let (socket, answer) = tokio_tungstenite::client_async(request, io).await.unwrap();
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], protocol);
    let (mut sink, mut stream) = socket.split();
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (mut reader, mut writer) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(data) = message
                && writer.write_all(&data).await.is_err()
            {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    Box::new(ours)
}
