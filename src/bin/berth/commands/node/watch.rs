//! `berth node watch`: stays in a pod beside an installation, and answers for it over HTTP.
//!
//! `/healthz` says that it is there; `/readyz` whether the files are as installed and, where the daemon is the node's runtime,
//! whether that is ready, and the node's label with it; `/metrics` passes the daemon's numbers on, from the unix socket that it serves them on.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use berth::node::{self, Mode};
use clap::Args;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};

use super::api::{self, Api};
use super::label::Node;

/// Connections at once: a probe or two, a scraper.
const CONNECTIONS: usize = 16;
/// For a client to send its request, and for the daemon to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of the largest answer of the daemon.
const ANSWER_LIMIT: u64 = 16 << 20;
/// How long the files' state is believed: reading them costs some tens of milliseconds.
const BELIEVED: Duration = Duration::from_secs(60);

/// Options of `node watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:9478")]
    listen: SocketAddr,
    /// The daemon's [metrics] address on the host
    #[arg(long, value_name = "SOCKET", default_value = "/run/berth/metrics.sock")]
    metrics: PathBuf,
    /// Only stay
    #[arg(long)]
    idle: bool,
    /// Keep the label berth.dev/ready of this node in step with /readyz, and take it away at the end
    #[arg(long, value_name = "NODE")]
    label: Option<String>,
    #[command(flatten)]
    api: api::Options,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    metrics: PathBuf,
    /// What was last found of the files, and when.
    files: Mutex<Option<(Instant, Result<Mode, String>)>>,
}

impl Watch {
    /// Serves until it is told to end.
    pub(super) async fn execute(self) -> Result<u8> {
        // The first process of a pod ends by no signal that it has not asked for.
        let mut terminate = signal(SignalKind::terminate()).context("asking for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("asking for SIGINT")?;
        let ended = async {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        if self.idle {
            ended.await;
            return Ok(0);
        }
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("listening on {}; --listen takes another address", self.listen))?;
        println!("listening on {}", listener.local_addr()?);
        let metrics = self.root.join(self.metrics.strip_prefix("/").unwrap_or(&self.metrics));
        let state = Arc::new(State { root: self.root, metrics, files: Mutex::new(None) });
        let node = self.label.map(|name| Node::new(Api::new(&self.api)?, &name)).transpose()?;
        let labelling = async {
            match &node {
                Some(node) => node.keep(|| async { ready(&state).await.is_ok() }).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended => {}
            never = serve(listener, state.clone()) => match never {},
            never = labelling => match never {},
        }
        if let Some(node) = &node {
            node.clear().await;
        }
        Ok(0)
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("berth: taking a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = state.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(state.clone(), request));
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // A client that goes away is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

async fn answer<B>(state: Arc<State>, request: Request<B>) -> Result<Response<Full<Bytes>>, http::Error> {
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, b"ok\n".to_vec()),
        "/readyz" => match ready(&state).await {
            Ok(()) => (StatusCode::OK, b"ok\n".to_vec()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n").into_bytes()),
        },
        "/metrics" => match ask(&state.metrics, "/metrics").await {
            Ok((200, body)) => (StatusCode::OK, body),
            Ok((code, _)) => (StatusCode::BAD_GATEWAY, format!("the daemon answered {code}\n").into_bytes()),
            Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n").into_bytes()),
        },
        _ => (StatusCode::NOT_FOUND, b"not found\n".to_vec()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(Full::new(Bytes::from(text)))
}

async fn ready(state: &State) -> Result<(), String> {
    let mode = {
        let mut files = state.files.lock().await;
        match &*files {
            Some((at, found)) if at.elapsed() < BELIEVED => found.clone()?,
            _ => {
                let root = state.root.clone();
                let found = tokio::task::spawn_blocking(move || files_of(&root)).await;
                let found = found.unwrap_or_else(|error| Err(error.to_string()));
                *files = Some((Instant::now(), found.clone()));
                found?
            }
        }
    };
    if mode == Mode::RuntimeClass {
        return Ok(());
    }
    match ask(&state.metrics, "/readyz").await {
        Ok((200, _)) => Ok(()),
        Ok((_, body)) => Err(String::from_utf8_lossy(&body).trim().to_owned()),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// What files somebody added to or changed for reasons of their own is not judged: programs are.
fn files_of(root: &Path) -> Result<Mode, String> {
    let (manifest, wrong) = node::verify(root).map_err(|error| berth::error::chain(&error))?;
    match wrong.iter().find(|one| one.path.is_below(node::HOME)) {
        None => Ok(manifest.mode),
        Some(one) => Err(format!("{} is {}: `berth node install` puts it right", one.path, one.state)),
    }
}

/// Asks the daemon. Returns the status and the body.
async fn ask(socket: &Path, path: &str) -> Result<(u16, Vec<u8>)> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        // HTTP/1.0: the answer ends with the connection.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: berthd\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LIMIT).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs()))
        .and_then(|answer| Ok(answer?))
        .with_context(|| format!("asking berthd at {}", socket.display()))?;
    let end =
        answer.windows(4).position(|part| part == b"\r\n\r\n").context("berthd's answer has no head")?;
    let status = answer.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    Ok((status.context("berthd's answer has no status")?, answer.get(end + 4..).unwrap_or_default().to_vec()))
}
