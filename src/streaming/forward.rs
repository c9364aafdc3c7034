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
/// What a client that has ended its own direction may still be sent. Long: containerd and CRI-O give it a second, but there are
/// protocols in which the answer follows the client's end.
const AFTER_END: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(3600) };
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
///
/// A client that resets one of the two channels gave the connection up. One that only ends its own direction may be reading on, or
/// have broken off: kubectl says the same in both cases, and goes on taking what comes. So the pod is told of the end, as
/// it would be without us, and decides; one that sends without end is cut off some time.
async fn copy(socket: TcpStream, input: mpsc::Receiver<Bytes>, output: Output, error: Output) {
    let (reset, given_up, silent) = (output.reset.clone(), error.reset.clone(), CancellationToken::new());
    let said_all = CancellationToken::new();
    let (mut reader, mut writer) = socket.into_split();
    let mut error = Some(error);
    let up = async {
        let mut input = input;
        loop {
            let abandoned = async {
                silent.cancelled().await;
                tokio::time::sleep(HALF_CLOSED).await;
            };
            let data = tokio::select! {
                data = input.recv() => data,
                () = abandoned => None,
            };
            let Some(data) = data else { break };
            // Whatever follows is not wanted; the other direction may go on.
            if writer.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
        said_all.cancel();
    };
    let endless = async {
        said_all.cancelled().await;
        tokio::time::sleep(AFTER_END).await;
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
        if let Some(error) = error.take() {
            error.finish().await;
        }
        silent.cancel();
    };
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = reset.cancelled() => {}
        () = given_up.cancelled() => {}
        () = endless => tracing::info!("a forwarded connection is cut off {AFTER_END:?} after its client's end"),
    }
    // Also of a connection that was given up: kubectl waits for this end, however much of the data is still under way to it.
    if let Some(error) = error {
        error.finish().await;
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
        let link = Link {
            gone: gone.clone(),
            cut: Arc::default(),
            activity,
            frames: frames.clone(),
            reader: idle(),
            writer: idle(),
        };
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

    const DATA: u32 = 3;
    const ERROR: u32 = 1;

    /// A connection to a pod that sends without end, to a client that takes nothing of it; the tokens by which that gives up its
    /// data and error channel.
    async fn endless() -> (impl Future<Output = ()>, mpsc::Receiver<Frame>, [CancellationToken; 2]) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut pod, _) = listener.accept().await.unwrap();
        tokio::spawn(async move { while pod.write_all(&[b'x'; 4096]).await.is_ok() {} });
        let (frames, mut queue) = mpsc::channel(1);
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let output = Output::new(DATA, frames.clone(), tokens[0].clone(), None);
        let error = Output::new(ERROR, frames, tokens[1].clone(), None);
        let (said, input) = mpsc::channel(1);
        let copying = tokio::spawn(async move {
            // The client has ended its own direction.
            drop(said);
            copy(socket, input, output, error).await;
        });
        assert!(matches!(queue.recv().await.unwrap(), Frame::Data { channel: DATA, .. }));
        (async { copying.await.unwrap() }, queue, tokens)
    }

    /// What is queued after data.
    async fn last(mut queue: mpsc::Receiver<Frame>) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = queue.recv().await {
            if !matches!(frame, Frame::Data { .. }) {
                frames.push(frame);
            }
        }
        frames
    }

    #[tokio::test]
    async fn who_gives_up_the_data_hears_the_end_of_the_error_channel() {
        let (copying, queue, [data, _error]) = endless().await;
        data.cancel();
        let both = async { tokio::join!(copying, last(queue)).1 };
        let frames = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert!(matches!(frames[..], [Frame::End { channel: ERROR }]), "{frames:?}");
    }

    #[tokio::test]
    async fn who_only_ends_his_own_direction_is_not_sent_for_ever() {
        let (copying, queue, _tokens) = endless().await;
        let both = async { tokio::join!(copying, last(queue)).1 };
        let frames = tokio::time::timeout(AFTER_END * 10, both).await.unwrap();
        let reset = |frame: &Frame| matches!(frame, Frame::Reset { channel: DATA, .. });
        let end = |frame: &Frame| matches!(frame, Frame::End { channel: ERROR });
        assert!(frames.len() == 2 && frames.iter().any(reset) && frames.iter().any(end), "{frames:?}");
    }

    #[tokio::test]
    async fn who_gives_up_the_error_channel_gives_up_the_connection() {
        let (copying, queue, [_data, error]) = endless().await;
        error.cancel();
        let both = async { tokio::join!(copying, last(queue)).1 };
        let frames = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert!(matches!(frames[..], [Frame::Reset { channel: DATA, .. }]), "{frames:?}");
    }
}
