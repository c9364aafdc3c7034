//! Serving a sandbox's sockets: bounded, and never stopped by what a client sends.

use std::{io, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Handle,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    Common, View, answer, count,
    sockets::Sockets,
    wire::{self, Received},
};

/// Questions of one sandbox that wait for upstream servers.
const FLIGHTS: usize = 128;
/// Connections of one sandbox.
const CONNECTIONS: usize = 32;
/// A connection that is silent is closed (RFC 7766, 6.2.3: some seconds).
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a socket that should have none.
const PAUSE: Duration = Duration::from_millis(100);
/// No question is longer.
const QUESTION_MAX: usize = 4_096;

/// The tasks of one sandbox's server; they end with this value.
#[derive(Debug)]
pub(super) struct Served {
    datagrams: JoinHandle<()>,
    streams: JoinHandle<()>,
}

impl Served {
    pub(super) fn is_alive(&self) -> bool {
        !self.datagrams.is_finished() && !self.streams.is_finished()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.datagrams.abort();
        self.streams.abort();
    }
}

type Seen = Arc<RwLock<Arc<View>>>;

pub(super) fn start(
    runtime: &Handle,
    sockets: Sockets,
    common: Arc<Common>,
    view: Seen,
) -> io::Result<Served> {
    let _entered = runtime.enter();
    let (udp, tcp) = (UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?);
    let datagrams = runtime.spawn(datagrams(Arc::new(udp), Arc::clone(&common), Arc::clone(&view)));
    let streams = runtime.spawn(streams(tcp, common, view));
    Ok(Served { datagrams, streams })
}

async fn datagrams(socket: Arc<UdpSocket>, common: Arc<Common>, view: Seen) {
    let mut buffer = vec![0; QUESTION_MAX];
    // Ends with this task.
    let mut asking = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = asking.join_next() => continue,
        };
        let (length, client) = match received {
            Ok(received) => received,
            // A client that went away before its answer came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::debug!(%error, "receiving a question");
                sleep(PAUSE).await;
                continue;
            }
        };
        let question = match wire::receive(&buffer[..length]) {
            Received::Nothing => continue,
            Received::Refused(answer) => {
                count(&common.counters.refused);
                let _ = socket.send_to(&answer, client).await;
                continue;
            }
            Received::Question(question) => question,
        };
        let now = Arc::clone(&view.read());
        let limit = question.limit(false);
        if let Some(reply) = answer::local(&common.directory, &now, &question) {
            count(&common.counters.local);
            let _ = socket.send_to(&wire::encode(&reply, limit), client).await;
        } else if asking.len() >= FLIGHTS {
            count(&common.counters.refused);
            let reply = question.reply(hickory_proto::op::ResponseCode::Refused);
            let _ = socket.send_to(&wire::encode(&reply, limit), client).await;
        } else {
            let (socket, common) = (Arc::clone(&socket), Arc::clone(&common));
            asking.spawn(async move {
                let answer = common.forwarder.ask(&now, &question, false, &common.counters).await;
                let _ = socket.send_to(&answer, client).await;
            });
        }
    }
}

async fn streams(listener: TcpListener, common: Arc<Common>, view: Seen) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let (common, view) = (Arc::clone(&common), Arc::clone(&view));
                    connections.spawn(async move {
                        if let Err(error) = converse(stream, &common, &view).await {
                            tracing::debug!(%error, "a connection to a resolver");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "taking a connection to a resolver");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One question after the other, until the client is silent or says what is none.
async fn converse(mut stream: TcpStream, common: &Common, view: &Seen) -> io::Result<()> {
    let mut buffer = vec![0; QUESTION_MAX];
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let length = match length {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            length => usize::from(length?),
        };
        let Some(message) = buffer.get_mut(..length) else { return Ok(()) };
        let Ok(read) = timeout(IDLE, stream.read_exact(message)).await else { return Ok(()) };
        read?;
        let question = match wire::receive(message) {
            Received::Nothing => return Ok(()),
            Received::Refused(answer) => {
                count(&common.counters.refused);
                send(&mut stream, &answer).await?;
                continue;
            }
            Received::Question(question) => question,
        };
        let now = Arc::clone(&view.read());
        let answer = match answer::local(&common.directory, &now, &question) {
            Some(reply) => {
                count(&common.counters.local);
                wire::encode(&reply, question.limit(true))
            }
            None => common.forwarder.ask(&now, &question, true, &common.counters).await,
        };
        send(&mut stream, &answer).await?;
    }
}

async fn send(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let whole = [&length.to_be_bytes()[..], answer].concat();
    timeout(IDLE, stream.write_all(&whole)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
