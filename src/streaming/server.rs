//! The HTTP server: takes a token, upgrades the connection, runs the session.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::link::{Cut, Peer};
use super::spdy::Stuck;
use super::upgrade::{self, Transport, Upgrade};
use super::{Call, Shared, attach, exec, forward, spdy, websocket};

/// Connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// Most bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;
/// How long a client may take for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// After the listener failed (no descriptors left), how long to wait before the next try.
const RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop`; the sessions are then ended as if their clients had gone.
pub(super) async fn run(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let sessions = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&places).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection {
                    shared: Arc::clone(&shared),
                    sessions: sessions.clone(),
                    stop: stop.clone(),
                };
                sessions.spawn(connection.serve(stream, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a streaming connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    sessions.close();
    sessions.wait().await;
}

#[derive(Clone, Debug)]
struct Connection {
    shared: Arc<Shared>,
    sessions: TaskTracker,
    stop: CancellationToken,
}

type Answer = Response<Full<Bytes>>;

impl Connection {
    async fn serve(self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        // Found out within minutes that the client's machine is gone, though nobody has anything to say.
        let _ = keep_alive(&stream);
        let (stop, peer) = (self.stop.clone(), Peer::of(&stream));
        let shared = Arc::clone(&self.shared);
        let serving = async {
            match &shared.tls {
                None => self.serve_http(stream, peer, permit).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => self.serve_http(stream, peer, permit).await,
                    Err(error) => tracing::debug!(%error, "a TLS handshake"),
                },
            }
        };
        tokio::select! {
            () = serving => {}
            () = stop.cancelled() => {}
        }
    }

    async fn serve_http<S>(self, stream: S, peer: Peer, permit: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let permit = Arc::new(permit);
        let service = service_fn(move |request| {
            let (connection, permit, peer) = (self.clone(), Arc::clone(&permit), peer.clone());
            async move { Ok::<_, Infallible>(connection.answer(request, permit, peer)) }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a streaming request");
        }
    }

    fn answer(self, mut request: Request<Incoming>, permit: Arc<OwnedSemaphorePermit>, peer: Peer) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST", HeaderMap::new());
        }
        let path = request.uri().path();
        let mut parts = path.split('/').skip(1);
        let (Some(kind), Some(token), None) = (parts.next(), parts.next(), parts.next()) else {
            return not_found();
        };
        let Some(call) = self.shared.tokens.take(token).filter(|call| call.path() == kind) else {
            return not_found();
        };
        let port_forward = matches!(call, Call::PortForward(_));
        let Upgrade { transport, headers } = match upgrade::negotiate(request.headers(), port_forward) {
            Ok(upgrade) => upgrade,
            Err(refusal) => {
                let status = match refusal {
                    upgrade::Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
                    upgrade::Refusal::Protocol(_) => StatusCode::FORBIDDEN,
                };
                return refuse(status, &refusal.to_string(), refusal.headers());
            }
        };
        let upgrading = hyper::upgrade::on(&mut request);
        let (shared, stop, tracker) = (self.shared, self.stop, self.sessions);
        tracker.spawn(async move {
            let _permit = permit;
            match upgrading.await {
                Ok(upgraded) => session(&shared, call, transport, TokioIo::new(upgraded), peer, &stop).await,
                Err(error) => tracing::debug!(%error, "upgrading a streaming connection"),
            }
        });
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = headers;
        answer
    }
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

fn not_found() -> Answer {
    refuse(
        StatusCode::NOT_FOUND,
        "no session of this token: it is unknown, used or expired",
        HeaderMap::new(),
    )
}

fn refuse(status: StatusCode, message: &str, headers: HeaderMap) -> Answer {
    let mut answer = Response::new(Full::from(format!("{message}\n")));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    // One request a connection: tokens are good once.
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

type Io = TokioIo<hyper::upgrade::Upgraded>;

/// A session from its upgrade to its end.
async fn session(
    shared: &Shared,
    call: Call,
    transport: Transport,
    io: Io,
    peer: Peer,
    stop: &CancellationToken,
) {
    let _counted = shared.sessions.begin(&call);
    match call {
        Call::Exec(exec) => {
            let Some(mut client) = client(io, peer, transport, exec.wants, stop).await else { return };
            let _watch = watch(shared, &client.link, stop);
            let outcome = exec::run(&shared.pods, exec, &mut client).await;
            client.finish(&outcome).await;
        }
        Call::Attach(attach) => {
            // Before the client's streams are taken: once they are, it misses nothing that is printed.
            let ends = attach::ends(&shared.pods, &attach).await;
            let Some(mut client) = client(io, peer, transport, attach.wants, stop).await else { return };
            let _watch = watch(shared, &client.link, stop);
            let outcome = match ends {
                Ok(ends) => attach::run(ends, &mut client).await,
                Err(outcome) => outcome,
            };
            client.finish(&outcome).await;
        }
        Call::PortForward(target) => {
            let mut tunnel = None;
            let (link, streams) = if transport == Transport::Tunnel {
                let websocket::Tunnel { io, task } = websocket::tunnel(io).await;
                tunnel = Some(task);
                spdy::serve(io, peer, Stuck::IsReset)
            } else {
                spdy::serve(io, peer, Stuck::IsReset)
            };
            let _watch = watch(shared, &link, stop);
            forward::run(target, &link, streams).await;
            link.close(false).await;
            drop(tunnel);
        }
    }
}

async fn client(
    io: Io,
    peer: Peer,
    transport: Transport,
    wants: super::Wants,
    stop: &CancellationToken,
) -> Option<Client> {
    match transport {
        Transport::Channels { version, codec } => {
            Some(Client::websocket(io, peer, version, codec, wants).await)
        }
        Transport::Spdy { version } => {
            // The daemon's stop does not wait for a client that does not open its streams.
            let client = tokio::select! {
                client = Client::spdy(io, peer, version, wants) => client,
                () = stop.cancelled() => return None,
            };
            client.inspect_err(|error| tracing::debug!(%error, "a streaming session did not begin")).ok()
        }
        Transport::Tunnel => None,
    }
}

/// Ends the session when the daemon stops, or nothing moves for too long.
fn watch(
    shared: &Shared,
    link: &super::link::Link,
    stop: &CancellationToken,
) -> tokio_util::task::AbortOnDropHandle<()> {
    let (gone, activity, stop, limit) =
        (link.gone.clone(), link.activity.clone(), stop.clone(), shared.idle_timeout);
    let cut = Arc::clone(&link.cut);
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let why = tokio::select! {
            () = stop.cancelled() => Cut::Stops,
            () = activity.idle(limit) => {
                tracing::info!("a streaming session was idle for {limit:?} and ends");
                Cut::Idle(limit)
            }
        };
        let _ = cut.set(why);
        gone.cancel();
    }))
}
