//! Names that nobody here has: the sandbox's own servers are asked, one after the other.
//!
//! Questions leave by the sandbox's own namespace, by its routes and with its address: what a pod can't reach it can't ask. So does
//! one to a loopback address that was named for the sandbox, where a server beside its other processes has it. Only a loopback address
//! that comes from the host's own configuration (systemd-resolved's 127.0.0.53) is the host's. Each question has a socket of its own, so that its port is as
//! hard to guess as its number.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{
    Counters, Server, View,
    cache::Cache,
    count,
    wire::{self, Question, UDP_MAX},
};
use crate::{error::Error, netns};

const PORT: u16 = 53;
/// For each server. libc's stub gives up after 5 seconds, and asks again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Under way at once, of all sandboxes; the server of each sandbox has a smaller limit of its own.
const FLIGHTS: usize = 1_024;
/// A server that failed is asked last for so long.
const GRUDGE: Duration = Duration::from_secs(30);
/// More servers than a host and its sandboxes have.
const GRUDGES_MAX: usize = 1_024;

/// A server as one sandbox reaches it; `None`: as the host does.
type Reached = (Server, Option<PathBuf>);

fn reached(view: &View, server: Server) -> Reached {
    (server, (!server.on_host).then(|| view.netns.clone()))
}

#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) cache: Cache,
    flights: Semaphore,
    /// Keyed by the system's randomness; hashing a counter gives numbers nobody can foretell.
    random: RandomState,
    counter: AtomicU64,
    silent: Mutex<Vec<(Reached, Instant)>>,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self {
            cache: Cache::default(),
            flights: Semaphore::new(FLIGHTS),
            random: RandomState::new(),
            counter: AtomicU64::new(0),
            silent: Mutex::default(),
        }
    }
}

impl Forwarder {
    /// The answer's bytes, of at most `limit`.
    pub(super) async fn ask(
        &self,
        view: &View,
        question: &Question,
        stream: bool,
        counters: &Counters,
    ) -> Vec<u8> {
        let limit = question.limit(stream);
        let refuse = |code| wire::encode(&question.reply(code), limit);
        if view.upstream.is_empty() {
            // There is no wider world, and in this one the name is not known.
            count(&counters.local);
            return refuse(ResponseCode::NXDomain);
        }
        if let Some(reply) = self.cache.get(view, question, Instant::now()) {
            count(&counters.cached);
            return wire::encode(&reply, limit);
        }
        let Ok(_flight) = self.flights.try_acquire() else {
            count(&counters.refused);
            return refuse(ResponseCode::Refused);
        };
        let mut last = None;
        for server in self.in_order(view) {
            match timeout(PATIENCE, self.exchange(view, server, question, stream)).await {
                Ok(Ok(answer)) if useful(&answer) => {
                    self.cache.put(view, question, &answer, Instant::now());
                    count(&counters.forwarded);
                    return wire::fit(answer, limit);
                }
                Ok(Ok(answer)) => last = Some(answer),
                Ok(Err(error)) => {
                    tracing::debug!(server = %server.address, %error, "asking a name server");
                    self.remember_silent(view, server);
                }
                Err(_) => {
                    tracing::debug!(server = %server.address, "a name server is silent");
                    self.remember_silent(view, server);
                }
            }
        }
        match last {
            Some(answer) => {
                count(&counters.forwarded);
                wire::fit(answer, limit)
            }
            None => {
                count(&counters.failed);
                refuse(ResponseCode::ServFail)
            }
        }
    }

    /// As configured, but those that did not answer lately come last.
    fn in_order(&self, view: &View) -> Vec<Server> {
        let mut silent = self.silent.lock();
        silent.retain(|(_, since)| since.elapsed() < GRUDGE);
        let mut ordered = view.upstream.to_vec();
        ordered.sort_by_cached_key(|server| {
            let wanted = reached(view, *server);
            silent.iter().any(|(other, _)| *other == wanted)
        });
        ordered
    }

    fn remember_silent(&self, view: &View, server: Server) {
        let server = reached(view, server);
        let mut silent = self.silent.lock();
        silent.retain(|(other, _)| *other != server);
        if silent.len() < GRUDGES_MAX {
            silent.push((server, Instant::now()));
        }
    }

    async fn exchange(
        &self,
        view: &View,
        server: Server,
        question: &Question,
        stream: bool,
    ) -> io::Result<Vec<u8>> {
        let number = self.random.hash_one(self.counter.fetch_add(1, Ordering::Relaxed));
        let id = u16::try_from(number & 0xffff).unwrap_or_default();
        let mut asked = question.bytes.clone();
        asked[..2].copy_from_slice(&id.to_be_bytes());
        let mut answer = if stream {
            by_stream(view, server, &asked).await?
        } else {
            by_datagram(view, server, &asked, question, id).await?
        };
        if !wire::answers(&answer, question, id) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        answer[..2].copy_from_slice(&question.bytes[..2]);
        Ok(answer)
    }
}

/// Whether another server need not be asked: SERVFAIL, NOTIMP and REFUSED say something of the server, not of the name.
fn useful(answer: &[u8]) -> bool {
    !matches!(answer.get(3).map(|flags| flags & 0x0f), None | Some(2 | 4 | 5))
}

async fn by_datagram(
    view: &View,
    server: Server,
    asked: &[u8],
    question: &Question,
    id: u16,
) -> io::Result<Vec<u8>> {
    let address = SocketAddr::new(server.address, PORT);
    let socket = enter(view, server, move || {
        let any: IpAddr =
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        // Packets of others are the kernel's to drop.
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let socket = UdpSocket::from_std(socket.await?)?;
    socket.send(asked).await?;
    let mut buffer = vec![0; usize::from(UDP_MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if wire::answers(&buffer[..length], question, id) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_stream(view: &View, server: Server, asked: &[u8]) -> io::Result<Vec<u8>> {
    let address = SocketAddr::new(server.address, PORT);
    let open = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let mut stream = enter(view, server, open).await?.connect(address).await?;
    let length = u16::try_from(asked.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], asked].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// Opens a socket where it may reach the server.
async fn enter<T: Send + 'static>(
    view: &View,
    server: Server,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if server.on_host {
        return open();
    }
    let path = view.netns.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let netns = netns::open(&path)?;
        netns::within(&path, &netns, || open().map_err(Error::kernel("opening a socket")))
    });
    match opened.await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(Error::Kernel { source, .. })) => Err(source),
        Ok(Err(error)) => Err(io::Error::other(error.to_string())),
        Err(_) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// What a resolver's configuration (resolv.conf(5)) names as servers, in order. Those with a zone (`fe80::1%eth0`) mean an
/// interface that the sandbox has not, and are left out.
#[must_use]
pub fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .collect()
}
