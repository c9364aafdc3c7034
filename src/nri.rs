//! NRI, the Node Resource Interface (github.com/containerd/nri): plugins on the node that are told of each step in the life
//! of pods and containers, and may change containers as they are made.
//!
//! ```text
//!  plugin connects ── RegisterPlugin ──► Configure ──► (may be told from here on) ──► Synchronize ──► told
//!  or is launched         │                │                                              │
//!                         └── too late, refused, nonsense: its connection ends ◄──────────┘
//! ```
//!
//! `wire` and `connection` speak ttrpc over the multiplexed socket, `plugin` is one that is registered, `plugins` knows who
//! is there, `join` and `launch` bring them there. `operation` implements [`Lifecycle`] for the pods: it asks the plugins in
//! the order of their index, `collect` puts together what they want (`owners` knows who set what), `describe` and `apply`
//! are between NRI's words and the OCI specification, `others` changes and ends containers that a plugin names.
//!
//! Without plugins an operation is an atomic increment. A plugin that hangs is cut off at the request time limit: what
//! waits for its answer goes on without it, and what reads (List, Status) never waited.

mod apply;
mod collect;
mod connection;
mod describe;
mod join;
mod launch;
mod operation;
mod others;
mod owners;
mod plugin;
mod plugins;
mod removal;
mod wire;
mod words;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use self::operation::Begun;
use self::plugins::Plugins;
use crate::cdi::Registry;
use crate::pod::{Lifecycle, Operation, Pods};
use crate::proto::nri::v1alpha1::Empty;

/// Plugins at once, those included that are just joining.
const MOST_PLUGINS: usize = 64;

/// How long plugins have to take note of the daemon's end.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// How plugins are found and how long they may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of plugins to launch, each an executable `NN-name`.
    pub plugin_path: PathBuf,
    /// Directory of their configurations, `NN-name.conf` or `name.conf`.
    pub plugin_config_path: PathBuf,
    /// For a plugin to register, and to be synchronized.
    pub registration_timeout: Duration,
    /// For a plugin to answer one request.
    pub request_timeout: Duration,
    /// Version of the daemon, told to plugins.
    pub version: String,
    /// Devices that plugins may name.
    pub devices: Registry,
}

/// What NRI's parts share.
#[derive(Debug)]
struct Shared {
    options: Options,
    plugins: Plugins,
    /// The pods, once they are there.
    pods: OnceLock<Pods>,
    /// A permit for each plugin.
    places: Arc<tokio::sync::Semaphore>,
    stopping: CancellationToken,
}

/// NRI. Clones are the same.
#[derive(Clone, Debug)]
pub struct Nri(Arc<Shared>);

impl Nri {
    /// NRI with no plugin yet: it can be handed to the pods as their [`Lifecycle`].
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Shared {
            options,
            plugins: Plugins::new(),
            pods: OnceLock::new(),
            places: Arc::new(tokio::sync::Semaphore::new(MOST_PLUGINS)),
            stopping: CancellationToken::new(),
        }))
    }

    /// Launches the plugins of the plugin directory and waits until they are synchronized, or have failed to be.
    pub async fn launch(&self, pods: Pods) {
        if self.0.pods.set(pods).is_err() {
            return;
        }
        launch::all(&self.0).await;
    }

    /// Lets plugins connect, until [`Nri::stop`].
    pub async fn serve(&self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.0.stopping.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&self.0.places).try_acquire_owned() {
                    Ok(place) => {
                        tokio::spawn(join::external(Arc::clone(&self.0), stream, place));
                    }
                    Err(_) => {
                        tracing::warn!(most = MOST_PLUGINS, "one more NRI plugin is turned away");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting an NRI plugin");
                    // Out of descriptors, most likely: it would fail again at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Tells plugins that the daemon ends, and lets go of them.
    pub async fn stop(&self) {
        self.0.stopping.cancel();
        let plugins = self.0.plugins.current();
        let shutdown = plugins.plugins.iter().map(|plugin| async {
            let _ = plugin.connection.call::<_, Empty>("Shutdown", &Empty {}, SHUTDOWN).await;
            plugin.close();
        });
        futures::future::join_all(shutdown).await;
    }
}

impl Lifecycle for Nri {
    fn begin(&self) -> Arc<dyn Operation> {
        Arc::new(Begun { shared: Arc::clone(&self.0), generation: self.0.plugins.current() })
    }
}

/// Why a plugin does not come to be told.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    /// It did not register in time.
    #[error("it did not register within {}ms", .0.as_millis())]
    Late(Duration),
    /// It went away before it had registered.
    #[error("it went away before it had registered")]
    Gone,
    /// Its name or index can't be.
    #[error("{0}")]
    Name(String),
    /// It asked for something before it was registered.
    #[error("it asked for {0} before it was registered")]
    Order(String),
    /// A call to it failed.
    #[error("{call}: {source}")]
    Call {
        /// Which.
        call: &'static str,
        /// How.
        source: connection::CallError,
    },
    /// It wants to be told of events that are unknown here.
    #[error("it subscribes to unknown events: 0x{0:x}")]
    Events(i32),
    /// It can't be told of so many pods and containers.
    #[error("it does not take what there is in pieces, and in one piece it is too large")]
    Pieces,
    /// The process could not be started.
    #[error("starting {path}: {source}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its configuration can't be read.
    #[error("reading {path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// As many as can be are there.
    #[error("{MOST_PLUGINS} plugins are there already")]
    Full,
}
