//! Exec, Attach and PortForward: sessions between a client and what runs in a pod.
//!
//! ```text
//!  kubelet ---Exec (gRPC)---> [cri] ---> Streaming::exec: the request waits under a token
//!     |                                        |
//!     +---GET /exec/TOKEN, Upgrade-----> [server] takes it ---> spdy | websocket ---> Client ---> exec | attach
//!                                                                    (or Link) ---------------> forward
//! ```
//!
//! A session is a task. What it holds (a command in the container, a connection to the container's shim, sockets in the pod's
//! network namespace) it owns, so that all is freed when it ends: because the command ended, the client went away, nothing
//! moved for `idle_timeout`, or the daemon stops. Everything a client can send has a bound, and a client that reads slowly
//! holds back only what it asked for itself: queues are bounded, and an attached one misses output rather than holding up
//! the container.

mod attach;
mod client;
mod exec;
mod forward;
mod link;
mod netns;
mod resize;
mod server;
mod sessions;
mod spdy;
mod status;
mod tls;
mod token;
mod upgrade;
mod websocket;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::container::{ContainerSnapshot, ContainerState};
use crate::error::{Classify, Kind};
use crate::pod::Pods;
use client::Wants;
use sessions::Sessions;
use tls::Acceptor;
pub use tls::TlsFiles;
use token::Tokens;

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// A session without traffic ends after this.
    pub idle_timeout: Duration,
    /// Serves by TLS; none: in the clear.
    pub tls: Option<TlsFiles>,
}

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; none with a terminal.
    pub stderr: bool,
    /// Whether there is a terminal.
    pub tty: bool,
}

/// A session could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on.
    #[error("listening on {address} for streaming: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS can't be served with these files.
    #[error("streaming by TLS: {0}")]
    Tls(#[source] tls::Error),
    /// No pod or container of that id, or more than one.
    #[error(transparent)]
    Find(#[from] crate::pod::Error),
    /// It does not run.
    #[error("{what} {id} is not running: {call} needs a running one")]
    NotRunning {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Its id.
        id: String,
        /// What was asked.
        call: &'static str,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Contradiction(&'static str),
    /// Clients do not come for what they ordered.
    #[error("{0} sessions wait for their clients already")]
    TooManyWaiting(usize),
    /// No random bytes for a token.
    #[error("making a token: {0}")]
    Random(#[source] getrandom::Error),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(error) => error.kind(),
            Self::NotRunning { .. } => Kind::FailedPrecondition,
            Self::Contradiction(_) => Kind::InvalidArgument,
            Self::TooManyWaiting(_) => Kind::ResourceExhausted,
            Self::Listen { .. } | Self::Tls(_) | Self::Random(_) => Kind::Internal,
        }
    }
}

/// What a token stands for.
#[derive(Debug)]
enum Call {
    Exec(exec::Exec),
    Attach(attach::Attach),
    PortForward(forward::Target),
}

impl Call {
    /// The first part of its URL's path.
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

#[derive(Debug)]
struct Shared {
    pods: Pods,
    tokens: Tokens<Call>,
    idle_timeout: Duration,
    tls: Option<Acceptor>,
    sessions: Sessions,
}

/// The streaming server. Clones are the same.
#[derive(Clone, Debug)]
pub struct Streaming {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Arc<Mutex<Option<std::net::TcpListener>>>,
}

impl Streaming {
    /// Listens. Connections are served by [`Streaming::serve`].
    ///
    /// # Errors
    /// [`Error::Listen`] when the address is taken or not of this host, [`Error::Tls`] when the files are none.
    pub fn open(options: &Options, pods: Pods) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: options.address, source };
        let listener = std::net::TcpListener::bind(options.address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = reachable(listener.local_addr().map_err(failed)?);
        let tls = options.tls.clone().map(Acceptor::open).transpose().map_err(Error::Tls)?;
        let shared = Shared {
            pods,
            tokens: Tokens::new(token::LIFE),
            idle_timeout: options.idle_timeout,
            tls,
            sessions: Sessions::default(),
        };
        Ok(Self { shared: Arc::new(shared), address, listener: Arc::new(Mutex::new(Some(listener))) })
    }

    /// Where clients reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many sessions there are now, by kind: `exec`, `attach`, `portforward`.
    pub fn sessions(&self) -> [(&'static str, i64); 3] {
        self.shared.sessions.now()
    }

    /// Serves until `stop`, and then ends the sessions.
    pub async fn serve(&self, stop: CancellationToken) {
        let Some(listener) = self.listener.lock().take() else { return };
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => server::run(listener, Arc::clone(&self.shared), stop).await,
            Err(error) => tracing::error!(%error, "streaming is not served"),
        }
    }

    /// Prepares an exec session; returns its URL.
    ///
    /// # Errors
    /// [`Error`]; a command that can't be run is told in the session.
    pub fn exec(&self, id: &str, command: Vec<String>, streams: Streams) -> Result<String, Error> {
        let wants = wants(streams)?;
        let container = self.found(id)?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Err(Error::NotRunning { what: "container", id: container.id.clone(), call: "Exec" });
        }
        self.url(Call::Exec(exec::Exec { container: container.id.clone(), command, wants }))
    }

    /// Prepares an attach session; returns its URL.
    ///
    /// # Errors
    /// [`Error`].
    pub fn attach(&self, id: &str, streams: Streams) -> Result<String, Error> {
        let mut wants = wants(streams)?;
        // One not started yet, too: who attaches now misses nothing of what it prints.
        let container = self.found(id)?;
        if !matches!(container.state, ContainerState::Created | ContainerState::Running { .. }) {
            return Err(Error::NotRunning { what: "container", id: container.id.clone(), call: "Attach" });
        }
        // The container was made with a terminal or without: what the request says of it is not asked.
        wants.tty = container.config.tty;
        wants.stderr &= !wants.tty;
        self.url(Call::Attach(attach::Attach { container: container.id.clone(), wants }))
    }

    /// Prepares a port-forward session; returns its URL.
    ///
    /// # Errors
    /// [`Error`]; ports nobody listens on are told in the session.
    pub fn port_forward(&self, id: &str) -> Result<String, Error> {
        let pod = self.shared.pods.find_pod(id)?;
        if !pod.ready {
            return Err(Error::NotRunning { what: "pod sandbox", id: pod.id.clone(), call: "PortForward" });
        }
        self.url(Call::PortForward(forward::Target { pod: pod.id.clone(), netns: pod.netns.clone() }))
    }

    fn found(&self, id: &str) -> Result<Arc<ContainerSnapshot>, Error> {
        let (_, container) = self.shared.pods.find_container(id)?;
        Ok(container)
    }

    fn url(&self, call: Call) -> Result<String, Error> {
        let path = call.path();
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}/{path}/{}", self.address, self.shared.tokens.insert(call)?))
    }
}

fn wants(Streams { stdin, stdout, stderr, tty }: Streams) -> Result<Wants, Error> {
    if tty && stderr {
        return Err(Error::Contradiction("tty and stderr: a terminal has no standard error of its own"));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::Contradiction("none of stdin, stdout and stderr is asked for"));
    }
    Ok(Wants { stdin, stdout, stderr, tty })
}

/// A server on all addresses is reached over the loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
