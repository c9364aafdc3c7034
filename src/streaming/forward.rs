//! A port-forward session: pairs of streams, each for one connection to a port of the pod.
//!
//! The two streams of a pair, `data` and `error`, name the same `requestID`; very old clients name none and open them one
//! after the other, so that their ids differ by 2.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{CHUNK, Link, Output};
use super::netns;
use super::spdy::Stream;

/// How long the second stream of a pair may take.
const PAIRING: Duration = Duration::from_secs(30);
/// Clients that have read all do not always close their own direction: they get this long between two writes.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// Streams that wait for their other half.
const UNPAIRED_MAX: usize = 256;

/// Whose ports are forwarded.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) pod: String,
    /// `None` on the host's network.
    pub(super) netns: Option<PathBuf>,
}

/// Serves pairs until the client is gone.
pub(super) async fn run(target: Target, link: &Link, mut streams: mpsc::Receiver<Stream>) {
    let target = Arc::new(target);
    let mut waiting: HashMap<String, (Stream, Instant)> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let late = waiting.values().map(|(_, since)| *since + PAIRING).min();
        tokio::select! {
            () = link.gone.cancelled() => break,
            stream = streams.recv() => match stream {
                Some(stream) => {
                    // A refusal waits for a client that does not read: no longer than the session lasts.
                    let paired = tokio::select! {
                        paired = pair(&mut waiting, stream) => paired,
                        () = link.gone.cancelled() => break,
                    };
                    if let Some((data, error)) = paired {
                        connections.spawn(forward(Arc::clone(&target), data, error));
                    }
                }
                None => break,
            },
            Some(_) = connections.join_next() => {}
            () = tokio::time::sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                let now = Instant::now();
                // Dropping a stream resets it.
                waiting.retain(|_, (_, since)| *since + PAIRING > now);
            }
        }
    }
}

/// The pair that `stream` completes, data first.
async fn pair(waiting: &mut HashMap<String, (Stream, Instant)>, stream: Stream) -> Option<(Stream, Stream)> {
    let kind = stream.headers.get("streamtype").to_owned();
    let request = match (stream.headers.get("requestid"), kind.as_str()) {
        (_, "data" | "error") if stream.headers.get("port").parse::<u16>().unwrap_or(0) == 0 => {
            refuse(stream, "the stream names no port").await;
            return None;
        }
        ("", "error") => format!("#{}", stream.id),
        ("", "data") => format!("#{}", stream.id.saturating_sub(2)),
        (request, "data" | "error") => request.to_owned(),
        _ => {
            refuse(stream, "the stream is neither of type data nor error").await;
            return None;
        }
    };
    let Some((other, _)) = waiting.remove(&request) else {
        if waiting.len() < UNPAIRED_MAX {
            waiting.insert(request, (stream, Instant::now()));
        }
        return None;
    };
    match (kind.as_str(), other.headers.get("streamtype")) {
        ("data", "error") => Some((stream, other)),
        ("error", "data") => Some((other, stream)),
        _ => {
            refuse(stream, "the request has such a stream already").await;
            None
        }
    }
}

async fn refuse(stream: Stream, why: &'static str) {
    let _ = stream.output.send(Bytes::from_static(why.as_bytes())).await;
    stream.output.finish().await;
}

/// One connection. What goes wrong is told on the error stream.
async fn forward(target: Arc<Target>, data: Stream, error: Stream) {
    let port = data.headers.get("port").parse().unwrap_or(0);
    let Stream { input, output, .. } = data;
    match netns::connect(target.netns.as_deref(), port).await {
        Ok(socket) => copy(socket, input, output, error.output).await,
        Err(failure) => {
            let message = refused(&target.pod, port, &failure);
            let _ = error.output.send(message.into()).await;
            error.output.finish().await;
            output.finish().await;
        }
    }
}

fn refused(pod: &str, port: u16, failure: &std::io::Error) -> String {
    format!(
        "error forwarding port {port} to pod {pod}: connecting to localhost:{port} in its network namespace: {failure}"
    )
}

/// Copies both ways; each direction ends by itself. The error channel ends with what comes from the pod: clients wait for it.
async fn copy(socket: TcpStream, mut input: mpsc::Receiver<Bytes>, output: Output, error: Output) {
    let (reset, silent) = (output.reset.clone(), CancellationToken::new());
    let (mut reader, mut writer) = socket.into_split();
    let up = async {
        loop {
            let given_up = async {
                silent.cancelled().await;
                tokio::time::sleep(HALF_CLOSED).await;
            };
            let data = tokio::select! {
                data = input.recv() => data,
                () = given_up => None,
            };
            let Some(data) = data else { break };
            // Whatever follows is not wanted; the other direction may go on.
            if writer.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(1..) if output.send(buffer.split().freeze()).await.is_ok() => {}
                _ => break,
            }
        }
        output.finish().await;
        error.finish().await;
        silent.cancel();
    };
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = reset.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio_util::task::AbortOnDropHandle;

    use super::super::link::{Activity, Frame};
    use super::super::spdy::Headers;
    use super::*;

    #[tokio::test]
    async fn a_refusal_that_nobody_reads_ends_with_the_session() {
        // Nobody takes anything out of the queue, and it is full.
        let (frames, _queue) = mpsc::channel(1);
        frames.try_send(Frame::Ping(1)).unwrap();
        let idle = || AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let (gone, activity) = (CancellationToken::new(), Activity::new());
        let link =
            Link { gone: gone.clone(), activity, frames: frames.clone(), reader: idle(), writer: idle() };
        let (accepted, streams) = mpsc::channel(1);
        let (_data, input) = mpsc::channel(1);
        let output = Output::new(1, frames, CancellationToken::new(), None);
        accepted.send(Stream { id: 1, headers: Headers::default(), input, output }).await.unwrap();
        let leaving = async {
            // It is being refused: it names no port.
            drop(accepted.reserve().await.unwrap());
            gone.cancel();
        };
        let target = Target { pod: "p".to_owned(), netns: None };
        let ended = async { tokio::join!(run(target, &link, streams), leaving) };
        tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    }
}
