//! The controller: the one handle through which sandboxes join and leave networks.
//!
//! ```text
//!   create_sandbox ──► join ──► … ──► leave ──► … ──► delete_sandbox
//!                       │ record (leases, ports, endpoint: one commit)
//!                       └ kernel (set elements, veth pair, addresses, routes)
//! ```
//!
//! Every call may be repeated. A call that failed or was cut off half-way leaves a record of what it was about to make; the
//! next `join`, `leave`, `delete_sandbox` or [`Controller::reconcile`] finishes or undoes it. Work is done on the threads of
//! `worker`, calls on one sandbox one after the other; when a caller goes away, the work is finished all the same.

mod agent;
mod audit;
mod endpoint;
mod guest;
mod naming;
mod networks;
mod overlay;
mod reconcile;
mod status;
mod subnets;
mod traffic;
mod verify;
mod watch;

pub use audit::Audit;
pub use overlay::{HeldBlock, Reclaimed};
pub use status::{NetworkStatus, PoolStatus, PoolUse, Report};

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use ipnetwork::IpNetwork;
use parking_lot::RwLock;
use tokio::sync::{Mutex, RwLock as Gate};

use crate::{
    definition::{NetworkRequest, usable},
    driver::{Context, Driver},
    error::{Error, Result},
    firewall::{Firewall, endpoint_elements},
    ipam::{Embedded, IpamDriver, Pool},
    link,
    model::{
        BridgeOptions, Endpoint, EndpointOptions, Network, NetworkDriver, Sandbox, SandboxSpec, SubnetOptions,
    },
    names::{check_name, stable_hash},
    nft::Element,
    overlay::Plane,
    resolver::Resolvers,
    store::{self, Store, commit},
    worker::{Kernel, Workers},
};

/// After a sandbox is deleted its namespace usually goes, and the kernel takes the veth pair with it, without anyone waiting.
/// After this time we look whether it did.
const LINK_GRACE: Duration = Duration::from_secs(3);
/// Nobody waits longer for another change to end: kubelets ask again after two minutes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Locks for sandboxes; two that share one wait for each other, which costs nothing but time.
const STRIPES: u64 = 64;

/// How a controller is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The record file. On a file system that ends with the boot (the daemon's state directory).
    pub store: PathBuf,
    /// Where networks made by [`Controller::create_network`] are kept; on the daemon's root directory. `None`: they end with
    /// the process.
    pub definitions: Option<PathBuf>,
    /// Name of our nftables table. One per daemon.
    pub table: String,
    /// How our interfaces on the host begin: 1 to 8 letters and digits. One per daemon; none may be another's followed by
    /// hexadecimal digits.
    pub interface_prefix: String,
    /// Name of the default network.
    pub network: String,
    /// The default network; `None`: there is none. On a kernel without IPv6 it has its IPv4 subnet only.
    pub bridge: Option<BridgeOptions>,
    /// How this host takes part in overlays; `None`: it does not.
    pub overlay: Option<crate::overlay::Options>,
}

impl Options {
    /// The usual names, a record file and a default network.
    #[must_use]
    pub fn new(store: PathBuf, bridge: BridgeOptions) -> Self {
        Self {
            store,
            definitions: None,
            table: "berth".to_owned(),
            interface_prefix: "berth".to_owned(),
            network: "bridge".to_owned(),
            bridge: Some(bridge),
            overlay: None,
        }
    }

    /// The usual names and a record file, without a default network.
    #[must_use]
    pub fn bare(store: PathBuf) -> Self {
        Self {
            store,
            definitions: None,
            table: "berth".to_owned(),
            interface_prefix: "berth".to_owned(),
            network: String::new(),
            bridge: None,
            overlay: None,
        }
    }

    fn check(&self) -> Result<()> {
        check_name("table", &self.table)?;
        if let Some(bridge) = &self.bridge {
            check_name("network", &self.network)?;
            bridge.subnets.iter().try_for_each(|options| usable(options.subnet))?;
        }
        let prefix = &self.interface_prefix;
        if prefix.is_empty() || prefix.len() > 8 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::invalid("interface prefix", prefix, "1 to 8 letters and digits"));
        }
        Ok(())
    }
}

/// A network in service.
#[derive(Debug)]
struct Active {
    network: Network,
    driver: Box<dyn Driver>,
    pools: Vec<Pool>,
    /// Of subnets it had before: addresses are still in use, none is given out.
    retired: Vec<Pool>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    resolvers: Resolvers,
    ipam: Box<dyn IpamDriver>,
    firewall: Firewall,
    prefix: String,
    definitions: Option<PathBuf>,
    default_network: String,
    overlay: Option<Arc<Plane>>,
    /// Subnets of the default network as configured; it may have been told of others.
    configured: Vec<SubnetOptions>,
    networks: RwLock<HashMap<String, Arc<Active>>>,
}

/// Handle to the networks of this host; clones share everything.
#[derive(Clone, Debug)]
pub struct Controller {
    inner: Arc<Inner>,
    workers: Workers,
    stripes: Arc<Vec<Arc<Mutex<()>>>>,
    /// Held shared by every change, exclusively by reconciliation.
    gate: Arc<Gate<()>>,
    /// For both of these.
    patience: Duration,
}

impl Controller {
    /// Opens the records and makes the default network and those defined be there. Blocks for some milliseconds: call it
    /// before serving. All work happens in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Options that make no sense, a record file that can't be opened (or is open in another process), a refusal of the kernel.
    pub fn open(options: Options) -> Result<Self> {
        let options = Options { bridge: options.bridge.map(networks::possible), ..options };
        options.check()?;
        let workers = Workers::start()?;
        let mut kernel = Kernel::open().map_err(Error::kernel("opening netlink sockets"))?;
        let tunnels = options.overlay.as_ref().map(|overlay| vec![overlay.port, overlay.wireguard_port]);
        let overlay = options.overlay.map(|overlay| Plane::open(overlay, &mut kernel.route)).transpose()?;
        let inner = Inner {
            store: Store::open(&options.store)?,
            resolvers: Resolvers::new(),
            ipam: Box::new(Embedded),
            firewall: Firewall::new(options.table, tunnels.unwrap_or_default()),
            prefix: options.interface_prefix,
            definitions: options.definitions,
            default_network: options.network.clone(),
            overlay: overlay.map(Arc::new),
            configured: options.bridge.as_ref().map(|bridge| bridge.subnets.clone()).unwrap_or_default(),
            networks: RwLock::default(),
        };
        let tx = inner.store.write()?;
        inner.ipam.prepare(&tx)?;
        commit(tx)?;
        inner.firewall.ensure(&mut kernel.filter)?;
        let default =
            options.bridge.map(|bridge| Network::new(options.network, NetworkDriver::Bridge(bridge)));
        let default = default.map(|network| inner.as_told(network));
        let others = [Network::new("host", NetworkDriver::Host), Network::new("none", NetworkDriver::None)];
        for network in default.into_iter().chain(others) {
            inner.activate(&mut kernel, network)?;
        }
        for network in inner.defined()? {
            inner.revive(&mut kernel, network);
        }
        Ok(Self {
            inner: Arc::new(inner),
            workers,
            stripes: Arc::new((0..STRIPES).map(|_| Arc::default()).collect()),
            gate: Arc::default(),
            patience: PATIENCE,
        })
    }

    /// Records a sandbox on a network namespace that is pinned at a path.
    ///
    /// # Errors
    /// A bad id; the sandbox exists on another namespace.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<()> {
        check_name("sandbox id", &spec.id)?;
        self.change("creating a network sandbox", spec.id.clone(), move |inner, _| {
            let tx = inner.store.write()?;
            match store::sandbox(&tx, &spec.id)? {
                Some(present) if present.netns == spec.netns => return Ok(()),
                Some(present) => return Err(Error::SandboxExists { id: spec.id, netns: present.netns }),
                None => {}
            }
            store::put_sandbox(
                &tx,
                &Sandbox { id: spec.id, netns: spec.netns, endpoints: Vec::new(), naming: None, guest: None },
            )?;
            commit(tx)
        })
        .await?
    }

    /// Joins a sandbox to a network. Joining again with the same options makes sure that everything is there and returns the
    /// same endpoint.
    ///
    /// # Errors
    /// See [`Error`]; after an error nothing of the endpoint is left.
    pub async fn join(&self, sandbox: &str, network: &str, options: EndpointOptions) -> Result<Endpoint> {
        // Each of two families may lack a block or a claim.
        const ASKS: usize = 4;
        let mut asked = 0;
        loop {
            let (id, name, options) = (sandbox.to_owned(), network.to_owned(), options.clone());
            let joined = self
                .change("joining a network", sandbox.to_owned(), move |inner, kernel| {
                    inner.join(kernel, &id, &name, &options)
                })
                .await?;
            match joined {
                Ok(endpoint) => {
                    self.tell(&[], Some(network)).await;
                    return Ok(endpoint);
                }
                Err(error) if asked < ASKS && self.obtain(&error).await? => asked += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a sandbox out of a network; its interface is gone when this returns. A sandbox or an endpoint that is not there
    /// is left already.
    ///
    /// # Errors
    /// Everything that could not be undone. The endpoint stays on record then, and leaving can be tried again.
    pub async fn leave(&self, sandbox: &str, network: &str) -> Result<(), Vec<Error>> {
        let (id, name) = (sandbox.to_owned(), network.to_owned());
        let mut endpoints = self.endpoints(sandbox);
        endpoints.retain(|endpoint| endpoint.network == network);
        self.change("leaving a network", sandbox.to_owned(), move |inner, kernel| {
            inner.leave(kernel, &id, &name)
        })
        .await
        .unwrap_or_else(|error| Err(vec![error]))?;
        self.tell(&endpoints, None).await;
        Ok(())
    }

    /// What a sandbox has joined; nothing when that can't be told.
    fn endpoints(&self, sandbox: &str) -> Vec<Endpoint> {
        self.inner.store.sandbox(sandbox).ok().flatten().map(|sandbox| sandbox.endpoints).unwrap_or_default()
    }

    /// Takes a sandbox out of all networks and forgets it. Does not wait for its interfaces: they go with the namespace, or a
    /// few seconds later if somebody else holds that. A sandbox that is not there is deleted already.
    ///
    /// # Errors
    /// Everything that could not be undone. The sandbox stays on record then, and deleting can be tried again.
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), Vec<Error>> {
        let sandbox = id.to_owned();
        let endpoints = self.endpoints(id);
        let links = self
            .change("deleting a network sandbox", sandbox.clone(), move |inner, kernel| {
                inner.delete_sandbox(kernel, &sandbox, false)
            })
            .await
            .unwrap_or_else(|error| Err(vec![error]))?;
        if !links.is_empty() {
            let (inner, workers) = (Arc::downgrade(&self.inner), self.workers.clone());
            tokio::spawn(collect(inner, workers, Arc::clone(&self.gate), links));
        }
        self.tell(&endpoints, None).await;
        Ok(())
    }

    /// Holds an endpoint against the kernel and returns it when they agree.
    ///
    /// # Errors
    /// [`Error::NotAttached`] says what differs; the namespace is gone.
    pub async fn verify(&self, sandbox: &str, network: &str) -> Result<Endpoint> {
        let (id, network) = (sandbox.to_owned(), network.to_owned());
        self.change("looking at an endpoint", sandbox.to_owned(), move |inner, kernel| {
            inner.verify(kernel, &id, &network)
        })
        .await?
    }

    /// A sandbox as recorded. Never waits for the kernel.
    ///
    /// # Errors
    /// The store failed.
    pub fn sandbox(&self, id: &str) -> Result<Option<Sandbox>> {
        self.inner.store.sandbox(id)
    }

    /// All sandboxes as recorded.
    ///
    /// # Errors
    /// The store failed.
    pub fn sandboxes(&self) -> Result<Vec<Sandbox>> {
        self.inner.store.sandboxes()
    }

    /// All networks, by name.
    #[must_use]
    pub fn networks(&self) -> Vec<Network> {
        let mut networks: Vec<_> =
            self.inner.networks.read().values().map(|active| active.network.clone()).collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        networks
    }

    /// A network by its name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<Network> {
        self.inner.active(name).ok().map(|active| active.network.clone())
    }

    /// A network and who has joined it. Never waits for the kernel.
    ///
    /// # Errors
    /// There is no such network; the store failed.
    pub fn status(&self, name: &str) -> Result<NetworkStatus> {
        self.inner.status(&*self.inner.active(name)?)
    }

    /// All address pools with their leases.
    ///
    /// # Errors
    /// The store failed.
    pub async fn pools(&self) -> Result<Vec<PoolStatus>> {
        let inner = Arc::clone(&self.inner);
        self.workers.run("listing leases", move |_| inner.pool_statuses()).await?
    }

    /// Name of the default network.
    #[must_use]
    pub fn default_network(&self) -> &str {
        &self.inner.default_network
    }

    /// Makes the network that is asked for, and keeps its definition.
    ///
    /// # Errors
    /// The name is taken, options make no sense, subnets overlap, a parent interface is missing, the kernel lacks the driver.
    pub async fn create(&self, request: NetworkRequest) -> Result<Network> {
        if request.driver == "overlay" {
            return self.create_overlay(request).await;
        }
        self.alone("creating a network", move |inner, kernel| inner.create(kernel, request)).await?
    }

    /// Removes all networks that were made and nobody has joined. Returns their names.
    ///
    /// # Errors
    /// What could not be removed; the others are.
    pub async fn prune(&self) -> Result<(Vec<String>, Vec<Error>)> {
        let (mut removed, mut errors) = self.alone("removing unused networks", Inner::prune).await?;
        let overlays: Vec<_> = self
            .networks()
            .into_iter()
            .filter(|network| matches!(network.driver, NetworkDriver::Overlay(_)))
            .map(|network| network.name)
            .collect();
        for name in overlays {
            match self.delete_network(&name).await {
                Ok(()) => removed.push(name),
                Err(Error::NetworkInUse { .. } | Error::NetworkInUseElsewhere { .. }) => {}
                Err(error) => errors.push(error),
            }
        }
        removed.sort();
        Ok((removed, errors))
    }

    /// Adds a network and keeps its definition. Adding the same again is fine.
    ///
    /// # Errors
    /// A network of that name with other options, overlapping subnets, a refusal of the kernel.
    pub async fn create_network(&self, network: Network) -> Result<()> {
        self.alone("creating a network", move |inner, kernel| inner.create_network(kernel, network)).await?
    }

    /// Removes a network that nobody has joined. One that is not there is removed already.
    ///
    /// # Errors
    /// It is in use or built in, or the kernel refuses.
    pub async fn delete_network(&self, name: &str) -> Result<()> {
        if let Ok(active) = self.inner.active(name)
            && let NetworkDriver::Overlay(options) = &active.network.driver
        {
            return self.delete_overlay(name, options).await;
        }
        let name = name.to_owned();
        self.alone("deleting a network", move |inner, kernel| inner.delete_network(kernel, &name)).await?
    }

    /// Gives a bridge network other subnets. Sandboxes that have joined keep their addresses; those that join get theirs from
    /// the new subnets. `None`: as the default network is configured. It holds until it is changed again, or another
    /// configuration. Returns whether anything is different now.
    ///
    /// # Errors
    /// There is no such network, or it is no bridge; subnets that make no sense, overlap another network's, or whose gateway
    /// somebody has as an address: nothing is changed then. A refusal of the kernel: it is tried again by reconciliation.
    pub async fn change_subnets(&self, network: &str, subnets: Option<Vec<IpNetwork>>) -> Result<bool> {
        let network = network.to_owned();
        self.alone("changing a network's subnets", move |inner, kernel| {
            inner.change_subnets(kernel, &network, subnets.as_deref())
        })
        .await?
    }

    /// Whether the default network has subnets that it was told of, not the configured ones.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.inner.is_told()
    }

    /// Holds records and kernel against each other. What belongs to a sandbox that is not `live`, or to nobody, is undone;
    /// what a live one should have and has not (somebody flushed the firewall, deleted the bridge) is made again. Call it at
    /// start and now and then.
    ///
    /// # Errors
    /// Only when the work could not be done at all; what failed in detail is in the report.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<Report> {
        let live = live.clone();
        self.reconcile_with(move || live).await
    }

    /// The same, where the live sandboxes are asked for only when no change is under way any more: for a daemon that serves.
    ///
    /// # Errors
    /// As [`Controller::reconcile`].
    pub async fn reconcile_with(
        &self,
        live: impl FnOnce() -> HashSet<String> + Send + 'static,
    ) -> Result<Report> {
        let report =
            self.alone("reconciling networks", move |inner, kernel| inner.reconcile(kernel, &live())).await;
        self.announce();
        report
    }

    /// Removes everything from the host: all sandboxes' endpoints, bridges, the firewall table. For uninstalling; the
    /// controller is of no use afterwards.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn remove_all(&self) -> Result<(), Vec<Error>> {
        self.alone("removing all networks", Inner::remove_all).await.unwrap_or_else(|error| Err(vec![error]))
    }

    /// Runs a change that no other runs beside.
    async fn alone<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner, &mut Kernel) -> T + Send + 'static,
    ) -> Result<T> {
        self.inner.resolvers.adopt_runtime();
        // One that gives up lets the others through, who wait behind it.
        let exclusive = self.wait(what, Arc::clone(&self.gate).write_owned()).await?;
        let inner = Arc::clone(&self.inner);
        self.workers
            .run(what, move |kernel| {
                let _exclusive = exclusive;
                work(&inner, kernel)
            })
            .await
    }

    /// Runs a change of one sandbox: after other changes of it, never beside reconciliation.
    async fn change<T: Send + 'static>(
        &self,
        what: &'static str,
        sandbox: String,
        work: impl FnOnce(&Inner, &mut Kernel) -> T + Send + 'static,
    ) -> Result<T> {
        let stripe = usize::try_from(stable_hash(&[&sandbox]) % STRIPES).unwrap_or_default();
        self.inner.resolvers.adopt_runtime();
        let held = async {
            (Arc::clone(&self.gate).read_owned().await, Arc::clone(&self.stripes[stripe]).lock_owned().await)
        };
        let held = self.wait(what, held).await?;
        let inner = Arc::clone(&self.inner);
        self.workers
            .run(what, move |kernel| {
                // Held by the work, not by the caller: a caller that goes away does not let the next one in.
                let _held = held;
                work(&inner, kernel)
            })
            .await
    }

    /// Waits for changes that are under way.
    async fn wait<T>(&self, what: &'static str, turn: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(self.patience, turn).await.map_err(|_| Error::Deadline(what))
    }
}

/// Deletes host interfaces that outlive their sandbox because somebody else holds its namespace. Does not keep the controller
/// alive.
async fn collect(inner: Weak<Inner>, workers: Workers, gate: Arc<Gate<()>>, links: Vec<String>) {
    tokio::time::sleep(LINK_GRACE).await;
    let shared = gate.read_owned().await;
    let Some(inner) = inner.upgrade() else { return };
    let done = workers.run("collecting interfaces", move |kernel| {
        let _shared = shared;
        inner.collect(kernel, &links)
    });
    if let Err(error) | Ok(Err(error)) = done.await {
        tracing::warn!(%error, "an interface of a deleted sandbox is left to reconciliation");
    }
}

impl Inner {
    fn active(&self, name: &str) -> Result<Arc<Active>> {
        if let Some(active) = self.networks.read().get(name) {
            return Ok(Arc::clone(active));
        }
        let refused = self.overlay.as_ref().and_then(|plane| plane.refused.lock().get(name).cloned());
        Err(match refused {
            Some(reason) => Error::NotHere { network: name.to_owned(), reason },
            None => Error::NetworkNotFound(name.to_owned()),
        })
    }

    fn context<'a>(&'a self, kernel: &'a mut Kernel) -> Context<'a> {
        let underlay = self.overlay.as_ref().map(|plane| plane.underlay.lock().clone()).unwrap_or_default();
        Context { kernel, prefix: &self.prefix, underlay }
    }

    /// Everything that should stand in the firewall's sets.
    fn desired_elements(&self) -> Result<BTreeSet<Element>> {
        let mut desired = BTreeSet::new();
        for active in self.networks.read().values() {
            desired.extend(active.elements());
        }
        for sandbox in self.store.sandboxes()? {
            desired.extend(sandbox.endpoints.iter().flat_map(endpoint_elements));
        }
        Ok(desired)
    }

    fn collect(&self, kernel: &mut Kernel, links: &[String]) -> Result<()> {
        let owned: HashSet<String> = self
            .store
            .sandboxes()?
            .into_iter()
            .flat_map(|sandbox| sandbox.endpoints)
            .filter_map(|endpoint| endpoint.host_interface)
            .collect();
        for name in links.iter().filter(|name| !owned.contains(*name)) {
            let action = || Error::kernel(format!("deleting left-over interface {name}"));
            if link::find(&mut kernel.route, name).map_err(action())?.is_some() {
                tracing::info!(interface = name, "deleting an interface whose namespace is still held");
                link::delete(&mut kernel.route, name).map_err(action())?;
            }
        }
        Ok(())
    }
}
