//! The listener for those who watch the daemon: Prometheus, and probes.
//!
//! `GET /metrics` is the text format of Prometheus, `/healthz` says whether all parts of the daemon make progress, `/readyz`
//! whether it can run pods: what the kubelet reads as RuntimeReady and NetworkReady as well. Both name the part that fails, a line
//! each. Everything else is 404. It has no authentication: it listens on
//! loopback or a unix socket, and shows numbers, no names of pods.

mod gauges;
mod oom;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::assembly::Rooms;
use super::socket::Socket;
use crate::api::Scrape;
use crate::config::Listen;
use crate::error::chain;
use crate::pod::Pods;
use crate::watchdog::Watchdog;
use gauges::Gauges;

/// Connections at once; a scraper has one.
const CONNECTIONS: usize = 32;
/// A client that has not sent its request by then is let go.
const HEADERS: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken, as when descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers those who watch.
#[derive(Clone, Debug)]
pub(super) struct Observer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    gauges: Gauges,
    /// Held for a scrape: what it reads off the rooms is part of its answer, and no other's.
    scraping: Mutex<()>,
    pods: Pods,
    watchdog: Watchdog,
}

/// Where it listens.
#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    /// The socket is removed when this goes.
    Unix {
        listener: UnixListener,
        _socket: Socket,
    },
}

impl Observer {
    /// Registers what is read off the rooms.
    pub(super) fn new(registry: Registry, rooms: &Rooms) -> Result<Self, prometheus::Error> {
        let gauges = Gauges::new(&registry, rooms)?;
        tokio::spawn(oom::count(rooms.pods.clone(), oom::counter(&registry)?));
        let (pods, watchdog) = (rooms.pods.clone(), rooms.watchdog.clone());
        Ok(Self(Arc::new(Inner { registry, gauges, scraping: Mutex::default(), pods, watchdog })))
    }

    /// Listens, and serves until `stop`. A unix socket is as the CRI's: mode 0660, group `gid`.
    ///
    /// # Errors
    /// [`Error::Observe`] and [`Error::SocketInUse`] when the place is taken or not of this host.
    pub(super) async fn serve(self, place: &Listen, gid: u32, stop: CancellationToken) -> Result<(), Error> {
        let failed = |source| Error::Observe { place: shown(place), source };
        let listener = match place {
            Listen::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await.map_err(failed)?),
            Listen::Unix(path) => {
                let (socket, listener) = Socket::listen(path, gid)?;
                Listener::Unix { listener, _socket: socket }
            }
        };
        tracing::info!(address = shown(place), "metrics are served");
        tokio::spawn(async move {
            tokio::select! {
                () = self.accept(listener) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(())
    }

    async fn accept(self, listener: Listener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let observer = self.clone();
            let accepted = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        observer.connection(stream).await;
                        drop(permit);
                    });
                }),
                Listener::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move {
                        observer.connection(stream).await;
                        drop(permit);
                    });
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "taking a connection for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request| {
            let observer = self.clone();
            async move { Ok::<_, Infallible>(observer.answer(&request)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "a connection for metrics");
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => self.metrics(),
            "/healthz" => verdict(&self.hangs()),
            "/readyz" => {
                let network = self.0.pods.network_ready().err().map(|reason| format!("network: {reason}"));
                verdict(&self.hangs().into_iter().chain(network).collect::<Vec<_>>())
            }
            _ => text(StatusCode::NOT_FOUND, "there is /metrics, /healthz and /readyz\n"),
        }
    }

    fn hangs(&self) -> Vec<String> {
        self.0.watchdog.hangs().iter().map(ToString::to_string).collect()
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.written() {
            Ok(body) => response(StatusCode::OK, TextEncoder::new().format_type(), body.into_bytes()),
            Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{why}\n")),
        }
    }

    fn written(&self) -> Result<String, String> {
        let _one = self.0.scraping.lock();
        self.0.gauges.refresh();
        let text = TextEncoder::new().encode_to_string(&self.0.registry.gather());
        text.map_err(|error| format!("writing the metrics: {error}"))
    }

    /// Writes the metrics for those who ask on another way.
    pub(super) fn scrape(&self) -> Scrape {
        let observer = self.clone();
        Arc::new(move || observer.written())
    }
}

fn shown(place: &Listen) -> String {
    match place {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    }
}

/// 200 when nothing fails, else what does, a line each.
fn verdict(failing: &[String]) -> Response<Full<Bytes>> {
    match failing {
        [] => text(StatusCode::OK, "ok\n"),
        failing => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", failing.join("\n"))),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn response(status: StatusCode, kind: &str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::cri::fixtures;
    use crate::meter::Meter;

    /// Two who scrape at once, as a pair of Prometheus servers does.
    #[tokio::test]
    async fn scrapes_do_not_take_each_others_figures_away() {
        let registry = Registry::new();
        let directory = tempfile::tempdir().unwrap();
        let rooms = fixtures::rooms(directory.path());
        let observer = Observer::new(registry, &rooms).unwrap();
        let all = |text: &str| text.lines().filter(|line| line.starts_with("berth_network_")).count();
        let expected = all(&observer.written().unwrap());
        assert!(expected > 2, "{expected}");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        assert_eq!(all(&observer.written().unwrap()), expected);
                    }
                });
            }
        });
    }

    /// `docs/metrics.md` lists what is registered, no more and no less, and each with its labels.
    #[tokio::test]
    async fn every_metric_is_documented() {
        let registry = Registry::new();
        let directory = tempfile::tempdir().unwrap();
        let rooms = fixtures::rooms(directory.path());
        let calls = super::super::stack::Metrics::new(&registry).unwrap();
        let _meter = Meter::new(&registry).unwrap();
        let observer = Observer::new(registry.clone(), &rooms).unwrap();
        calls.seen_in_tests();
        observer.0.gauges.seen_in_tests();
        let there: BTreeSet<String> =
            registry.gather().iter().map(|family| family.name().to_owned()).collect();
        let page = include_str!("../../docs/metrics.md");
        let documented: BTreeSet<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(|name| name.split('{').next().unwrap_or_default().to_owned())
            .filter(|name| name.starts_with("berth_") || name.starts_with("process_"))
            .collect();
        assert_eq!(there, documented);
    }
}
