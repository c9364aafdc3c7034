//! The daemon, put together: directories, lock, rooms, socket, services, signals.
//!
//! [`run`] goes through it in this order and comes back when a signal ended it. Containers keep running: nothing here
//! stops them, and the next daemon finds them by their records. A stop is not special, so there is little to do in it.

pub(crate) mod assembly;
mod features;
mod handlers;
mod lock;
mod observe;
mod overlay;
mod socket;
mod stack;
mod systemd;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus::Registry;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::api::Scrape;
use crate::cgroup::Mode;
use crate::config::{Grpc, Runtime, Source};
use crate::cri::{ImageFace, RuntimeFace};
use crate::meter::Meter;
use crate::nri::Nri;
use crate::proto::runtime::v1::image_service_server::ImageServiceServer;
use crate::proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use crate::streaming::Streaming;
use crate::telemetry::Telemetry;

use assembly::Rooms;
use lock::Lock;
use observe::Observer;
use socket::Socket;
use stack::{Bounds, Metrics};

/// How long calls under way may go on after a signal. Streams have no end of their own.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// {doing} {path}
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A second daemon on the same directory.
    #[error("another berthd{} uses {}: give this one a directory of its own, or stop the other", pid_text(*pid), directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The other daemon.
        pid: Option<u32>,
    },
    /// Somebody answers on our socket.
    #[error("somebody listens on {} already: set another address in the configuration", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has our socket's name.
    #[error("{} is there and is not a socket: move it away, or set another address in the configuration", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// No cgroup hierarchy is mounted where everybody looks.
    #[error(
        "no cgroup hierarchy is mounted below /sys/fs/cgroup: mount one, or, where a new /sys hides them (`ip netns exec` \
         makes one), start berthd otherwise (`nsenter --net=/run/netns/NAME berthd`)"
    )]
    NoCgroups,
    /// The shim's program is nowhere.
    #[error(
        "berth-shim is neither beside berthd nor in PATH: install it there, or name it with `shim = \"PATH\"`"
    )]
    NoShim,
    /// The volumes could not be opened.
    #[error("opening the volumes: {0}")]
    Volumes(#[source] crate::volume::Error),
    /// The images could not be opened.
    #[error("opening the images: {0}")]
    Images(#[source] crate::image::Error),
    /// The networks could not be opened.
    #[error("opening the networks: {0}")]
    Network(#[source] berth_cni::Error),
    /// The records of CNI attachments could not be opened.
    #[error("opening the records of CNI attachments: {0}")]
    Cni(#[source] crate::cni::Error),
    /// The pods could not be opened.
    #[error("opening the pods: {0}")]
    Pods(#[source] crate::pod::Error),
    /// Streaming could not be set up.
    #[error(transparent)]
    Streaming(crate::streaming::Error),
    /// The listener for metrics.
    #[error("listening for metrics on {place} (metrics.address moves it, \"\" turns it off)")]
    Observe {
        /// Address or path.
        place: String,
        /// Why not.
        source: io::Error,
    },
    /// Handling signals.
    #[error("handling signals: {0}")]
    Signals(#[source] io::Error),
    /// The thread that looks whether the daemon makes progress.
    #[error("starting the watchdog's thread: {0}")]
    Watchdog(#[source] io::Error),
    /// Registering metrics.
    #[error("registering metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Serving.
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn run(source: Source, loaded: crate::config::Loaded, telemetry: Telemetry) -> Result<(), Error> {
    let config = &loaded.config;
    // Handlers first: a signal that comes while pods are recovered must not kill half-way.
    let mut signals = Signals::new()?;
    if !Mode::detect().is_mounted() {
        return Err(Error::NoCgroups);
    }
    make_directory(&config.root, 0o711)?;
    make_directory(&config.state, 0o711)?;
    let _locks = (Lock::take(&config.root)?, Lock::take(&config.state)?);
    socket::clear(&config.grpc.address)?;
    for file in &loaded.files {
        tracing::info!(file = %file.display(), "configuration read");
    }
    // Before anything is recovered: a shim that is called to clean up wants to tell.
    let _events = take_events(config)?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let rooms = assembly::open(&loaded, &Meter::new(&registry)?).await?;
    let observing = CancellationToken::new();
    let _observed = observing.clone().drop_guard();
    let observer = Observer::new(registry, &rooms)?;
    let scrape = observer.scrape();
    if let Some(place) = &config.metrics.address {
        observer.serve(place, config.grpc.gid, observing).await?;
    }
    let (_socket, listener) = Socket::listen(&config.grpc.address, config.grpc.gid)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %config.grpc.address.display(),
        root = %config.root.display(),
        state = %config.state.display(),
        "berthd is ready",
    );
    systemd::ready();
    let _watching = rooms.watchdog.watch(systemd::alive).map_err(Error::Watchdog)?;
    let stop = async {
        signals.wait(&source, &telemetry).await;
        systemd::stopping();
    };
    let sessions = Sessions::serve(rooms.streaming.clone());
    let plugins = PluginSocket::serve(rooms.nri.clone(), &config.nri);
    serve(&config.grpc, rooms, (metrics, scrape), listener, stop).await?;
    sessions.end().await;
    plugins.end().await;
    tracing::info!("berthd has stopped; containers keep running");
    Ok(())
}

/// Listens for what other shims tell, when a handler has one.
fn take_events(config: &crate::config::Config) -> Result<Option<Socket>, Error> {
    let others = config.runtimes.values().any(|runtime| matches!(runtime, Runtime::Shim { .. }));
    if !others {
        return Ok(None);
    }
    let (socket, listener) =
        Socket::listen(&crate::shim::events::address(&config.grpc.address), config.grpc.gid)?;
    tokio::spawn(crate::shim::events::take(listener));
    Ok(Some(socket))
}

/// Serves until `stop`, then lets calls under way end for a while.
async fn serve(
    grpc: &Grpc,
    rooms: Rooms,
    seen: (Metrics, Scrape),
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let stopped = CancellationToken::new();
    let incoming = UnixListenerStream::new(listener);
    let serving = router(grpc, rooms, seen, stopped.clone())
        .serve_with_incoming_shutdown(incoming, stopped.clone().cancelled_owned());
    let bounded = async {
        stop.await;
        stopped.cancel();
        tokio::time::sleep(DRAIN).await;
        tracing::warn!("calls were still under way {DRAIN:?} after the stop; they end now");
    };
    tokio::select! {
        result = serving => Ok(result?),
        () = bounded => Ok(()),
    }
}

/// The streaming server, beside everything else.
struct Sessions {
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Sessions {
    fn serve(streaming: Streaming) -> Self {
        tracing::info!(address = %streaming.address(), "streaming");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        Self { stop, serving: tokio::spawn(async move { streaming.serve(stopped).await }) }
    }

    /// Ends the sessions, and what they run.
    async fn end(self) {
        self.stop.cancel();
        if tokio::time::timeout(DRAIN, self.serving).await.is_err() {
            tracing::warn!("streaming sessions were still under way {DRAIN:?} after the stop; they end now");
        }
    }
}

/// The socket that NRI plugins connect to, beside everything else.
struct PluginSocket {
    nri: Option<Nri>,
    _socket: Option<Socket>,
}

impl PluginSocket {
    /// A socket that can't be had is no reason not to run pods: another runtime of the node may have it.
    fn serve(nri: Option<Nri>, config: &crate::config::Nri) -> Self {
        let Some(serving) = nri.clone().filter(|_| !config.disable_connections) else {
            return Self { nri, _socket: None };
        };
        match Socket::listen_privately(&config.socket_path) {
            Ok((socket, listener)) => {
                tracing::info!(path = %config.socket_path.display(), "NRI plugins can connect");
                tokio::spawn(async move { serving.serve(listener).await });
                Self { nri, _socket: Some(socket) }
            }
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(error, "NRI plugins can't connect: set another nri.socket_path");
                Self { nri, _socket: None }
            }
        }
    }

    async fn end(self) {
        if let Some(nri) = self.nri {
            nri.stop().await;
        }
    }
}

/// Both services under the stack.
fn router(
    grpc: &Grpc,
    rooms: Rooms,
    (metrics, scrape): (Metrics, Scrape),
    stopping: CancellationToken,
) -> Router<Stack<stack::Layers, Identity>> {
    let bounds = Bounds {
        deadline: grpc.deadline,
        changes: grpc.max_concurrent_calls,
        reads: grpc.max_concurrent_reads,
    };
    let Rooms { pods, images, facts, stats, streaming, networks, volumes, nri: _, watchdog, recent } = rooms;
    let debug = (pods.clone(), networks.clone(), streaming.clone());
    let own_debug = crate::api::debug(debug.0, debug.1, debug.2, watchdog, recent, scrape);
    let own_networks = crate::api::networks(pods.clone(), networks);
    let own_pods = pods.clone();
    let own_volumes = crate::api::volumes(pods.clone(), images.clone(), volumes);
    let own_containers = crate::api::containers(pods.clone(), images.clone());
    let size = grpc.max_message_size;
    let face = RuntimeFace::new(pods, images.clone(), facts, stats, streaming, stopping);
    let runtime =
        RuntimeServiceServer::new(face).max_decoding_message_size(size).max_encoding_message_size(size);
    let (own_images, image_users) = (images.clone(), own_pods);
    let image = ImageServiceServer::new(ImageFace::new(images))
        .max_decoding_message_size(size)
        .max_encoding_message_size(size);
    // The kubelet sends all over one connection: what the load limit lets in must not wait for a stream.
    let streams = bounds.changes.saturating_mul(2).saturating_add(bounds.reads).saturating_add(1024);
    tonic::transport::Server::builder()
        .max_concurrent_streams(u32::try_from(streams).unwrap_or(u32::MAX))
        .layer(stack::layers(bounds, metrics))
        .add_service(runtime)
        .add_service(image)
        .add_service(crate::api::images(own_images, image_users))
        .add_service(own_networks)
        .add_service(own_containers)
        .add_service(own_volumes)
        .add_service(own_debug)
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| Error::Io {
        doing: "making",
        path: path.to_owned(),
        source,
    })
}

// === Signals ===

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let on = |kind| signal(kind).map_err(Error::Signals);
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Comes back when the daemon is to stop. Reads the configuration again on SIGHUP.
    async fn wait(&mut self, source: &Source, telemetry: &Telemetry) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return tracing::info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return tracing::info!("SIGINT: stopping"),
                _ = self.hangup.recv() => reload(source, telemetry),
            }
        }
    }
}

/// A configuration that can't be read leaves all as it is.
fn reload(source: &Source, telemetry: &Telemetry) {
    match source.load() {
        Ok(loaded) => match telemetry.set_level(&loaded.config.log.level) {
            Ok(()) => tracing::info!(level = loaded.config.log.level, "SIGHUP: log level set"),
            Err(error) => tracing::error!(error = crate::error::chain(&error), "SIGHUP: log level kept"),
        },
        Err(error) => tracing::error!(%error, "SIGHUP: configuration kept"),
    }
}
