//! Names: a DNS server inside each sandbox that is on a network somebody made.
//!
//! ```text
//!   sandbox's namespace                                   daemon
//!   client ──► 127.0.0.11:53 ─(rules)─► socket ═══════► serve ──► answer ── directory   names of the sandbox's networks
//!                                                          │
//!                                                          └────► forward ── cache, the pod's own servers
//! ```
//!
//! The sockets are opened in the sandbox's namespace and served by the daemon's runtime: no process and no thread a sandbox.
//! They stand on ports of the kernel's choice, and two stateless rules in the namespace lead port 53 of 127.0.0.11 to them, so that
//! a pod may serve port 53 itself.
//!
//! A name is known as soon as its endpoint has joined, and is gone before the endpoint is. [`Directory`] is where names come from:
//! the controller puts this host's endpoints there, and whoever knows of endpoints elsewhere puts those beside them.

mod answer;
mod cache;
mod directory;
mod forward;
mod serve;
mod sockets;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use ipnetwork::IpNetwork;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

use crate::{
    error::{Error, Result},
    model::Sandbox,
};

pub use crate::naming::{NamedPort, Naming, is_name};
pub use directory::{Directory, Named};

pub use forward::servers;

use forward::Forwarder;

/// Where resolvers of all sandboxes listen; Docker's address.
pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);

/// libc's stub asks three servers at most.
const UPSTREAM_MAX: usize = 3;

/// How many queries had which answer, of all sandboxes, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameCounts {
    /// From the directory.
    pub local: u64,
    /// From the cache.
    pub cached: u64,
    /// From an upstream server.
    pub forwarded: u64,
    /// None: no upstream server answered in time.
    pub failed: u64,
    /// Refused: not well-formed, not a question, or too many at once.
    pub refused: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    local: AtomicU64,
    cached: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    fn read(&self) -> NameCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NameCounts {
            local: of(&self.local),
            cached: of(&self.cached),
            forwarded: of(&self.forwarded),
            failed: of(&self.failed),
            refused: of(&self.refused),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A name server, and from where it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Server {
    address: IpAddr,
    /// It is on the host's loopback. All others are asked from the sandbox.
    on_host: bool,
}

/// What a sandbox may ask, and whom else.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Networks whose names it sees, in the order it joined them.
    networks: Vec<String>,
    /// Their subnets: addresses in these are nobody else's to know.
    subnets: Vec<IpNetwork>,
    /// Only servers in the sandbox itself when nothing leads out of it.
    upstream: Arc<[Server]>,
    /// Where its namespace is pinned.
    netns: PathBuf,
}

impl View {
    fn of(sandbox: &Sandbox, naming: &Naming, named: impl Fn(&str) -> bool) -> Self {
        let endpoints = || sandbox.endpoints.iter().filter(|endpoint| named(&endpoint.network));
        // What must not leave a sandbox of internal networks must not leave by its questions either (CVE-2024-29018).
        let outside = naming.other_routes || sandbox.endpoints.iter().any(|endpoint| endpoint.default_route);
        Self {
            networks: endpoints().map(|endpoint| endpoint.network.clone()).collect(),
            subnets: endpoints().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect(),
            upstream: upstream(naming, outside),
            netns: sandbox.netns.clone(),
        }
    }
}

/// Whom a sandbox asks; `outside` says whether something leads out of it.
fn upstream(naming: &Naming, outside: bool) -> Arc<[Server]> {
    let servers = naming.upstream.iter().filter_map(|address| {
        let address = address.to_canonical();
        // The kernel takes the unspecified address for loopback.
        let is_local = address.is_loopback() || address.is_unspecified();
        let inside = is_local && naming.own_upstream;
        // A resolver that asks itself would not come to an end.
        let itself = inside && address == ADDRESS;
        let reached = (outside || inside) && !itself;
        reached.then_some(Server { address, on_host: is_local && !inside })
    });
    servers.take(UPSTREAM_MAX).collect()
}

/// What all resolvers share.
#[derive(Debug)]
struct Common {
    directory: Arc<Directory>,
    forwarder: Forwarder,
    counters: Counters,
}

/// One sandbox's server. Ends when dropped.
#[derive(Debug)]
struct Running {
    view: Arc<RwLock<Arc<View>>>,
    served: serve::Served,
}

/// The servers of all sandboxes.
#[derive(Debug)]
pub(crate) struct Resolvers {
    common: Arc<Common>,
    running: Mutex<HashMap<String, Running>>,
    runtime: OnceLock<Handle>,
}

impl Resolvers {
    pub(crate) fn new() -> Self {
        let common = Common {
            directory: Arc::default(),
            forwarder: Forwarder::default(),
            counters: Counters::default(),
        };
        Self { common: Arc::new(common), running: Mutex::default(), runtime: OnceLock::new() }
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        &self.common.directory
    }

    pub(crate) fn counts(&self) -> NameCounts {
        self.common.counters.read()
    }

    /// Remembers the caller's runtime: servers run there.
    pub(crate) fn adopt_runtime(&self) {
        if self.runtime.get().is_none()
            && let Ok(handle) = Handle::try_current()
        {
            let _ = self.runtime.set(handle);
        }
    }

    /// Whether a sandbox has a server.
    pub(crate) fn serves(&self, sandbox: &str) -> bool {
        self.running.lock().contains_key(sandbox)
    }

    /// Makes names and server be what the sandbox's record says; `named` tells the networks that have names. Returns whether a
    /// server had to be started.
    pub(crate) fn align(&self, sandbox: &Sandbox, named: impl Fn(&str) -> bool) -> Result<bool> {
        let Some(naming) = &sandbox.naming else { return Ok(false) };
        self.enter_names(sandbox, naming, &named);
        let view = View::of(sandbox, naming, &named);
        if view.networks.is_empty() {
            let ended = self.running.lock().remove(&sandbox.id);
            if ended.is_some() {
                sockets::close(&sandbox.netns)?;
            }
            return Ok(false);
        }
        {
            let running = self.running.lock();
            if let Some(running) = running.get(&sandbox.id).filter(|running| running.served.is_alive()) {
                *running.view.write() = Arc::new(view);
                return Ok(false);
            }
        }
        let runtime = self.runtime.get().ok_or(Error::Stopped("starting a resolver"))?;
        let sockets = sockets::open(&sandbox.netns)?;
        let view = Arc::new(RwLock::new(Arc::new(view)));
        let served = serve::start(runtime, sockets, Arc::clone(&self.common), Arc::clone(&view))
            .map_err(Error::kernel(format!("serving names in {}", sandbox.netns.display())))?;
        self.running.lock().insert(sandbox.id.clone(), Running { view, served });
        Ok(true)
    }

    fn enter_names(&self, sandbox: &Sandbox, naming: &Naming, named: impl Fn(&str) -> bool) {
        let directory = &self.common.directory;
        let short = sandbox.id.get(..12).filter(|_| sandbox.id.len() > 12);
        let mut current = Vec::new();
        for endpoint in sandbox.endpoints.iter().filter(|endpoint| named(&endpoint.network)) {
            let names = naming.names.iter().map(String::as_str).chain(short);
            let names = names.chain(endpoint.aliases.iter().map(String::as_str));
            let entry = Named {
                names: names.map(str::to_owned).collect(),
                addresses: endpoint.addresses.iter().map(IpNetwork::ip).collect(),
                ports: naming.ports.clone(),
            };
            directory.put(&endpoint.network, &sandbox.id, entry);
            current.push(endpoint.network.as_str());
        }
        directory.keep(&sandbox.id, &current);
    }

    /// A sandbox is about to leave a network: nobody finds it there any more.
    pub(crate) fn withdraw(&self, sandbox: &str, network: &str) {
        self.common.directory.remove(network, sandbox);
    }

    /// A sandbox goes.
    pub(crate) fn forget(&self, sandbox: &str) {
        self.common.directory.keep(sandbox, &[]);
        self.common.directory.name_more(sandbox, &[]);
        self.running.lock().remove(sandbox);
    }
}
