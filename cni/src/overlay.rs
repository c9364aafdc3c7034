//! Networks across hosts: what the hosts tell each other, through etcd.
//!
//! ```text
//!            transactions: networks, VNIs, blocks of addresses
//!   hosts ──────────────────────────────────────────────────► etcd
//!     │      under a lease: this host, its endpoints             │
//!     ▼                                                          │ watch, from the revision it has on
//!   kernel ◄── peers (highest epoch of an address wins) ── View ◄┘
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`records`] | what stands in etcd, under which keys |
//! | [`allocation`] | who gives out which addresses of a network: a pure value |
//! | [`view`] | what all hosts said: a pure value |
//! | [`etcd`] | the client |
//! | [`underlay`] | which of the host's addresses VXLAN packets come from |
//!
//! The controller's `agent` is what moves between them. etcd is needed for what hosts have to agree on: to make and remove
//! networks, and for a block of addresses when those held are used up. All else goes on without it from what was heard last.

pub(crate) mod allocation;
pub(crate) mod etcd;
pub(crate) mod records;
pub(crate) mod underlay;
pub(crate) mod view;

use std::{
    collections::HashMap,
    fmt, fs, io,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    definition::overlay_interfaces,
    error::{Error, Result},
    link::vxlan::Entries,
    model::{Network, NetworkDriver, OverlayOptions},
    naming::NamedPort,
    netlink::Socket,
};

pub use crate::error::EtcdError;
pub use records::Names;
pub(crate) use underlay::{Underlay, UnderlayState};

use etcd::Etcd;
use records::{Keys, NetworkRecord};
use view::View;

/// How a host takes part in overlays.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of the etcd servers.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: String,
    /// Files for TLS.
    pub tls: TlsFiles,
    /// Longest time of one call.
    pub timeout: Duration,
    /// How long after its last sign of life a host is forgotten. Whole seconds.
    pub lease: Duration,
    /// The underlay address; `None`: that of the default route's interface.
    pub address: Option<IpAddr>,
    /// UDP port of VXLAN, the same on all hosts.
    pub port: u16,
    /// UDP port of WireGuard, which encrypted networks go through; hosts may have different ones.
    pub wireguard_port: u16,
    /// Where the host's identity is kept: on the daemon's root directory.
    pub host_file: PathBuf,
}

/// PEM files.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Authorities that the servers' certificates come from.
    pub ca: Option<PathBuf>,
    /// This host's own certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// What is known of the hosts, for those who watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether etcd answers.
    pub connected: bool,
    /// Why not.
    pub trouble: String,
    /// Hosts whose leases live, this one among them.
    pub hosts: usize,
    /// Revisions of etcd that were heard of and are not in the kernel yet.
    pub lag: i64,
    /// By network: addresses on other hosts that the kernel knows, and records that lost to a later epoch.
    pub networks: HashMap<String, (usize, usize)>,
}

/// A sandbox on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteEndpoint {
    /// The host's name.
    pub host: String,
    /// The host's underlay address.
    pub host_address: IpAddr,
    /// The sandbox's id there.
    pub sandbox: String,
    /// Its addresses on the network.
    pub addresses: Vec<IpAddr>,
    /// MAC of its interface.
    pub mac: [u8; 6],
    /// What it is called.
    pub names: Names,
    /// More names it has on this network.
    pub aliases: Vec<String>,
    /// Names it has on every network.
    pub known_as: Vec<String>,
    /// Ports that can be asked for by name.
    pub ports: Vec<NamedPort>,
}

/// Says what a sandbox is called.
pub type NamesOf = Arc<dyn Fn(&str) -> Names + Send + Sync>;

/// A connection that is in use.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) etcd: Etcd,
    pub(crate) lease: i64,
}

/// What the kernel was made to know of a network.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// The device's index: another device knows nothing yet.
    pub(crate) index: u32,
    pub(crate) entries: Arc<Entries>,
    pub(crate) stale: usize,
}

/// This host's part, shared by the controller and its agent.
pub(crate) struct Plane {
    pub(crate) options: Options,
    pub(crate) keys: Keys,
    /// This host's id.
    pub(crate) host: String,
    pub(crate) host_name: String,
    pub(crate) view: Mutex<View>,
    pub(crate) underlay: Mutex<UnderlayState>,
    /// Networks that others made and that can't be here, and why.
    pub(crate) refused: Mutex<HashMap<String, String>>,
    pub(crate) applied: Mutex<HashMap<String, Applied>>,
    /// Held, on a worker thread, while the kernel is told of peers.
    pub(crate) syncing: Mutex<()>,
    /// Networks made here, with the revision they were made at: an older view does not know them.
    pub(crate) created: Mutex<HashMap<String, i64>>,
    /// Claims without a user, and since when.
    pub(crate) idle: Mutex<HashMap<(u32, IpAddr), Instant>>,
    /// One at a time asks for addresses: the others may find what it got.
    pub(crate) obtaining: tokio::sync::Mutex<()>,
    session: Mutex<Result<Session, String>>,
    names: OnceLock<NamesOf>,
    /// Revision that the kernel is at.
    settled: AtomicI64,
    /// Whether there is a session.
    up: watch::Sender<bool>,
    wanted: AtomicU64,
    done: watch::Sender<u64>,
    wake: Notify,
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Plane {
    /// Finds out who and where this host is.
    pub(crate) fn open(options: Options, socket: &mut Socket) -> Result<Self> {
        let plane = Self {
            keys: Keys::new(&options.prefix),
            host: identity(&options.host_file)?,
            host_name: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            view: Mutex::default(),
            underlay: Mutex::default(),
            refused: Mutex::default(),
            applied: Mutex::default(),
            syncing: Mutex::default(),
            created: Mutex::default(),
            idle: Mutex::default(),
            obtaining: tokio::sync::Mutex::default(),
            session: Mutex::new(Err("not connected yet".to_owned())),
            names: OnceLock::new(),
            settled: AtomicI64::new(0),
            up: watch::Sender::new(false),
            wanted: AtomicU64::new(0),
            done: watch::Sender::new(0),
            wake: Notify::new(),
            options,
        };
        plane.look_below(socket);
        Ok(plane)
    }

    /// Looks for the underlay anew.
    pub(crate) fn look_below(&self, socket: &mut Socket) {
        let wanted = underlay::Wanted {
            address: self.options.address,
            port: self.options.port,
            tunnel: tunnel_address(&self.host),
            tunnel_port: self.options.wireguard_port,
        };
        let found = match underlay::find(socket, &wanted) {
            Ok(Ok(underlay)) => UnderlayState::Known(underlay),
            Ok(Err(reason)) => UnderlayState::Unknown(reason),
            Err(error) => UnderlayState::Unknown(error.to_string()),
        };
        *self.underlay.lock() = found;
    }

    // === Session ===

    pub(crate) fn session(&self) -> Result<Session, EtcdError> {
        self.session
            .lock()
            .clone()
            .map_err(|reason| EtcdError::Unreachable { endpoints: self.options.endpoints.join(", "), reason })
    }

    /// The same for somebody who asks: one that was lost a moment ago may be back soon.
    pub(crate) async fn session_soon(&self) -> Result<Session, EtcdError> {
        let mut up = self.up.subscribe();
        let _ = tokio::time::timeout(self.options.timeout, up.wait_for(|up| *up)).await;
        self.session()
    }

    pub(crate) fn connected(&self, session: Session) {
        *self.session.lock() = Ok(session);
        self.up.send_replace(true);
    }

    /// Remembers why there is no connection; says whether that is news.
    pub(crate) fn lost(&self, reason: String) -> bool {
        let mut session = self.session.lock();
        let news = session.as_ref().err() != Some(&reason);
        *session = Err(reason);
        self.up.send_replace(false);
        // Nobody waits for what can't be told.
        self.done.send_replace(self.wanted.load(Ordering::SeqCst));
        news
    }

    pub(crate) fn set_names(&self, names: NamesOf) {
        let _ = self.names.set(names);
    }

    pub(crate) fn names(&self, sandbox: &str) -> Names {
        self.names.get().map(|names| names(sandbox)).unwrap_or_default()
    }

    // === Telling ===

    /// Something of this host changed.
    pub(crate) fn notify(&self) -> u64 {
        let generation = self.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake.notify_one();
        generation
    }

    /// The same, and waits until etcd knows: not at all without a connection, and not long with one.
    pub(crate) async fn told(&self) {
        let generation = self.notify();
        if self.session().is_err() {
            return;
        }
        let mut done = self.done.subscribe();
        let _ = tokio::time::timeout(self.options.timeout, done.wait_for(|done| *done >= generation)).await;
    }

    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn generation(&self) -> u64 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Everything up to a generation is told, everything up to a revision is in the kernel.
    pub(crate) fn settled(&self, generation: u64, revision: i64) {
        self.settled.store(revision, Ordering::SeqCst);
        self.done.send_if_modified(|done| {
            let later = generation > *done;
            *done = generation.max(*done);
            later
        });
    }

    pub(crate) fn status(&self) -> Status {
        let view = self.view.lock();
        let applied = self.applied.lock();
        let session = self.session.lock();
        Status {
            connected: session.is_ok(),
            trouble: session.as_ref().err().cloned().unwrap_or_default(),
            hosts: view.hosts.len(),
            lag: (view.revision - self.settled.load(Ordering::SeqCst)).max(0),
            networks: applied
                .iter()
                .map(|(name, applied)| (name.clone(), (applied.entries.neighbours.len(), applied.stale)))
                .collect(),
        }
    }

    pub(crate) fn remote_endpoints(&self, vni: u32) -> Vec<RemoteEndpoint> {
        let view = self.view.lock();
        let remote = view.remote(vni, &self.host);
        remote
            .map(|((_, sandbox), endpoint, host)| RemoteEndpoint {
                host: host.name.clone(),
                host_address: host.address,
                sandbox: sandbox.clone(),
                addresses: endpoint.value.addresses.iter().map(|record| record.address).collect(),
                mac: endpoint.value.mac,
                names: endpoint.value.names.clone(),
                aliases: endpoint.value.aliases.clone(),
                known_as: endpoint.value.known_as.clone(),
                ports: endpoint.value.ports.clone(),
            })
            .collect()
    }
}

/// A record as a network of this host.
pub(crate) fn network_of(record: &NetworkRecord, prefix: &str) -> Network {
    let (bridge, vxlan) = overlay_interfaces(prefix, &record.name);
    Network {
        name: record.name.clone(),
        driver: NetworkDriver::Overlay(OverlayOptions {
            vni: record.vni,
            bridge,
            vxlan,
            subnets: record.subnets.clone(),
            block: record.block,
            mtu: record.mtu,
            internal: record.internal,
            encrypted: record.encrypted,
        }),
        labels: record.labels.clone(),
        attachable: record.attachable,
    }
}

/// The record of a network of this host.
pub(crate) fn record_of(network: &Network, options: &OverlayOptions) -> NetworkRecord {
    NetworkRecord {
        name: network.name.clone(),
        vni: options.vni,
        subnets: options.subnets.clone(),
        block: options.block,
        mtu: options.mtu,
        internal: options.internal,
        encrypted: options.encrypted,
        attachable: network.attachable,
        labels: network.labels.clone(),
    }
}

/// A host's address in the tunnel: link-local, the first half of its id (RFC 4291, 2.5.6).
fn tunnel_address(host: &str) -> Ipv6Addr {
    let id = host.get(..16).and_then(|half| u64::from_str_radix(half, 16).ok()).unwrap_or_default();
    Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(id))
}

/// Reads the host's id, or makes one: it outlives boots and addresses.
fn identity(path: &Path) -> Result<String> {
    let failed = |action| move |source| Error::File { action, path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            let id = text.trim();
            let fits = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
            let broken =
                || io::Error::other("not an id of 32 hexadecimal digits; remove it to get a new one");
            return if fits { Ok(id.to_owned()) } else { Err(failed("reading")(broken())) };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading")(error)),
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| failed("making")(error.into()))?;
    let id = hex::encode(bytes);
    let write = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, &id)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("writing"))?;
    Ok(id)
}
