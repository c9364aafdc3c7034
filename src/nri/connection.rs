//! A plugin's connection: calls to it, and requests from it, over one socket.
//!
//! Two tasks, one reading and one writing, live as long as the connection. Whatever is wrong with what comes in ends it, and
//! nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::wire::{self, Kind, PLUGIN, RUNTIME};

/// Messages that wait to be written, and requests that wait to be handled.
const WAITING: usize = 16;

const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// gRPC's codes, as far as they matter here.
pub(super) mod code {
    pub(in crate::nri) const INVALID_ARGUMENT: i32 = 3;
    pub(in crate::nri) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(in crate::nri) const FAILED_PRECONDITION: i32 = 9;
    pub(in crate::nri) const UNIMPLEMENTED: i32 = 12;
}

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {}ms", .0.as_millis())]
    TimedOut(Duration),
    /// What is asked does not fit into a message.
    #[error(transparent)]
    TooLarge(wire::Error),
    /// The answer can't be read.
    #[error("the answer can't be read: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The plugin answered with an error.
    #[error("{message}")]
    Refused {
        /// gRPC's code.
        code: i32,
        /// The plugin's words.
        message: String,
    },
}

/// A request of the plugin.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) method: String,
    pub(super) payload: Vec<u8>,
    stream: u32,
}

#[derive(Debug, Default)]
struct Calls {
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<Vec<u8>>>,
}

/// A connection. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    outbox: mpsc::Sender<Vec<u8>>,
    calls: Arc<Mutex<Calls>>,
    closed: CancellationToken,
}

impl Connection {
    /// Speaks over `stream`; the plugin's requests come out of the receiver.
    pub(super) fn open(stream: UnixStream) -> (Self, mpsc::Receiver<Incoming>) {
        let (read, write) = stream.into_split();
        let (outbox, to_write) = mpsc::channel(WAITING);
        let (requests, incoming) = mpsc::channel(WAITING);
        let connection = Self { outbox, calls: Arc::default(), closed: CancellationToken::new() };
        tokio::spawn(connection.clone().read(read, requests));
        tokio::spawn(send(write, to_write, connection.closed.clone()));
        (connection, incoming)
    }

    /// Ends the connection: calls under way come back with [`CallError::Closed`].
    pub(super) fn close(&self) {
        self.closed.cancel();
        self.calls.lock().waiting.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits for the connection's end.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Calls a method of the plugin.
    pub(super) async fn call<Q, A>(&self, method: &str, request: &Q, limit: Duration) -> Result<A, CallError>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        if self.is_closed() {
            return Err(CallError::Closed);
        }
        let request = wire::Request {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let (sender, answer) = oneshot::channel();
        let stream = {
            let mut calls = self.calls.lock();
            // A client's streams have odd numbers (ttrpc, PROTOCOL.md).
            let stream = calls.next | 1;
            calls.next = stream.wrapping_add(2);
            calls.waiting.insert(stream, sender);
            stream
        };
        let _registered = Registered { calls: &self.calls, stream };
        let bytes = wire::encode(PLUGIN, stream, Kind::Request, &request.encode_to_vec())
            .map_err(CallError::TooLarge)?;
        let body = async {
            self.outbox.send(bytes).await.map_err(|_| CallError::Closed)?;
            answer.await.map_err(|_| CallError::Closed)
        };
        let body = tokio::select! {
            body = tokio::time::timeout(limit, body) => body.map_err(|_| CallError::TimedOut(limit))??,
            () = self.closed() => return Err(CallError::Closed),
        };
        let response = wire::Response::decode(body.as_slice())?;
        match response.status.filter(|status| status.code != 0) {
            Some(status) => Err(CallError::Refused { code: status.code, message: status.message }),
            None => Ok(A::decode(response.payload.as_slice())?),
        }
    }

    /// Answers a request of the plugin.
    pub(super) async fn answer<A: prost::Message>(
        &self,
        request: &Incoming,
        answer: Result<A, (i32, String)>,
    ) {
        let response = match answer {
            Ok(answer) => wire::Response { status: None, payload: answer.encode_to_vec() },
            Err((code, message)) => {
                wire::Response { status: Some(wire::Status { code, message }), payload: Vec::new() }
            }
        };
        if let Ok(bytes) = wire::encode(RUNTIME, request.stream, Kind::Response, &response.encode_to_vec()) {
            tokio::select! {
                _ = self.outbox.send(bytes) => {}
                () = self.closed() => {}
            }
        }
    }

    async fn read(self, stream: OwnedReadHalf, requests: mpsc::Sender<Incoming>) {
        let mut reader = wire::Reader::new(stream);
        loop {
            let message = tokio::select! {
                message = reader.next() => message,
                () = self.closed() => break,
            };
            let message = match message {
                Ok(message) => message,
                Err(wire::Error::Io(error)) => {
                    tracing::debug!(%error, "connection of an NRI plugin ended");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "an NRI plugin sent nonsense: its connection ends");
                    break;
                }
            };
            match (message.connection, message.kind) {
                (PLUGIN, Kind::Response) => {
                    // The answer to a call that was given up has nobody waiting for it.
                    let waiting = self.calls.lock().waiting.remove(&message.stream);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(message.body);
                    }
                }
                (RUNTIME, Kind::Request) => {
                    if !self.take_in(message.stream, &message.body, &requests).await {
                        break;
                    }
                }
                (connection, kind) => {
                    tracing::warn!(connection, ?kind, "an NRI plugin sent what makes no sense there");
                    break;
                }
            }
        }
        self.close();
    }

    /// Hands a request on. False when it is not even one.
    async fn take_in(&self, stream: u32, body: &[u8], requests: &mpsc::Sender<Incoming>) -> bool {
        let Ok(request) = wire::Request::decode(body) else { return false };
        let incoming = Incoming { method: request.method, payload: request.payload, stream };
        if request.service != RUNTIME_SERVICE {
            let message = format!("no service {:?} here, only {RUNTIME_SERVICE}", request.service);
            self.answer::<()>(&incoming, Err((code::UNIMPLEMENTED, message))).await;
        } else if let Err(full) = requests.try_send(incoming) {
            let message = format!("more than {WAITING} requests wait");
            self.answer::<()>(&full.into_inner(), Err((code::RESOURCE_EXHAUSTED, message))).await;
        }
        true
    }
}

async fn send(mut stream: OwnedWriteHalf, mut outbox: mpsc::Receiver<Vec<u8>>, closed: CancellationToken) {
    loop {
        let bytes = tokio::select! {
            bytes = outbox.recv() => bytes,
            () = closed.cancelled() => return,
        };
        let Some(bytes) = bytes else { return };
        let written = tokio::select! {
            written = stream.write_all(&bytes) => written,
            () = closed.cancelled() => return,
        };
        if written.is_err() {
            closed.cancel();
        }
    }
}

/// Forgets a call however it ends.
struct Registered<'a> {
    calls: &'a Mutex<Calls>,
    stream: u32,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.calls.lock().waiting.remove(&self.stream);
    }
}
