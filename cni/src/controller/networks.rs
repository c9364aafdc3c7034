//! Networks: bringing them into service, and their definitions on disk (one JSON file each, replaced whole).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Active, Inner, NetworkStatus, PoolStatus, overlay::NAMES_SOURCE};
use crate::{
    definition::{NetworkRequest, Surroundings, usable},
    driver,
    error::{Error, Result},
    firewall::network_elements,
    link,
    model::{BridgeOptions, Network, NetworkDriver, ParentOptions, SubnetOptions},
    names::{check_interface, check_name},
    nft::Element,
    store::{commit, decode, encode},
    sysctl,
    worker::Kernel,
};

/// The smallest MTU IPv6 works with, and the largest an interface takes.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// The default network as this kernel can have it: its IPv6 subnet is there unless somebody says otherwise, and is no reason not
/// to start where the kernel has none.
pub(super) fn possible(mut bridge: BridgeOptions) -> BridgeOptions {
    let v4 = |options: &SubnetOptions| options.subnet.is_ipv4();
    let dual = bridge.subnets.iter().any(v4) && !bridge.subnets.iter().all(v4);
    if dual && !sysctl::has_ipv6() {
        tracing::warn!(bridge = bridge.bridge, "the kernel has no IPv6: the default network has IPv4 only");
        bridge.subnets.retain(v4);
    }
    bridge
}

impl Active {
    /// What it puts into the firewall's sets.
    pub(super) fn elements(&self) -> BTreeSet<Element> {
        let Some(options) = self.network.driver.bridge() else { return BTreeSet::new() };
        let subnets = options.subnets.iter().map(|options| options.subnet);
        network_elements(&options, subnets.chain(self.retired.iter().map(|pool| pool.subnet)).collect())
    }
}

impl Inner {
    /// Takes a network into service: pools recorded, interface made, sets filled.
    pub(super) fn activate(&self, kernel: &mut Kernel, network: Network) -> Result<()> {
        let active = self.admit(network)?;
        self.serve(kernel, &active)?;
        self.networks.write().insert(active.network.name.clone(), Arc::new(active));
        Ok(())
    }

    /// Takes a network that was defined in an earlier life into service. What stands in its way now (a parent interface that
    /// is not plugged in) may go away: it is there all the same, and tried again by reconciliation.
    pub(super) fn revive(&self, kernel: &mut Kernel, network: Network) {
        let name = network.name.clone();
        match self.admit(network) {
            Ok(active) => {
                if let Err(error) = self.serve(kernel, &active) {
                    tracing::warn!(network = name, %error, "a network can't be served yet");
                }
                self.networks.write().insert(name, Arc::new(active));
            }
            Err(error) => tracing::error!(network = name, %error, "a defined network is left out"),
        }
    }

    /// Checks a network and records its pools.
    fn admit(&self, network: Network) -> Result<Active> {
        check_name("network", &network.name)?;
        self.check_driver(&network)?;
        let tx = self.store.write()?;
        let active = self.pooled(&tx, network)?;
        commit(tx)?;
        Ok(active)
    }

    /// Makes a network's parts in the kernel, or what is missing of them.
    pub(super) fn serve(&self, kernel: &mut Kernel, active: &Active) -> Result<()> {
        let pools: Vec<_> = active.pools.iter().chain(&active.retired).cloned().collect();
        active.driver.create_network(&mut self.context(kernel), &active.network, &pools)?;
        let elements = active.elements();
        if !elements.is_empty() {
            match self.firewall.add(&mut kernel.filter, &elements) {
                // A subnet stands in the set that this one overlaps: one of before.
                Err(Error::Kernel { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                    let mut desired = self.desired_elements()?;
                    desired.extend(elements);
                    self.firewall.align(&mut kernel.filter, &desired)?;
                }
                done => done?,
            }
        }
        self.sync_peers(kernel, active)
    }

    pub(super) fn check_driver(&self, network: &Network) -> Result<()> {
        let (what, mtu) = match &network.driver {
            NetworkDriver::Bridge(options) => ("bridge", options.mtu),
            NetworkDriver::Overlay(options) => ("bridge", options.mtu),
            NetworkDriver::Macvlan(_, ParentOptions { mtu, .. })
            | NetworkDriver::Ipvlan(_, ParentOptions { mtu, .. }) => ("parent", *mtu),
            NetworkDriver::Addresses(_) => ("addresses", 0),
            NetworkDriver::Host | NetworkDriver::None => return Ok(()),
        };
        if mtu != 0 && !MTU.contains(&mtu) {
            return Err(Error::invalid("mtu", mtu, "0 or 1280 to 65535"));
        }
        let subnets = network.subnets();
        let families = |v4: bool| subnets.iter().filter(|subnet| subnet.subnet.is_ipv4() == v4).count();
        if subnets.is_empty() || families(true) > 1 || families(false) > 1 {
            return Err(Error::invalid("subnets", subnets.len(), "one for each family, at least one"));
        }
        let Some(interface) = network.driver.interface() else { return Ok(()) };
        check_interface(what, interface)?;
        let networks = self.networks.read();
        let shared = networks.values().find(|active| {
            active.network.name != network.name && active.network.driver.interface() == Some(interface)
        });
        if let Some(other) = shared {
            return Err(Error::invalid(what, interface, format!("network {:?} has it", other.network.name)));
        }
        Ok(())
    }

    /// Makes the network that is asked for.
    pub(super) fn create(&self, kernel: &mut Kernel, request: NetworkRequest) -> Result<Network> {
        let network = self.resolve(kernel, request)?;
        self.create_network(kernel, network.clone())?;
        Ok(network)
    }

    /// The network that is asked for, as it can be made here.
    pub(super) fn resolve(&self, kernel: &mut Kernel, request: NetworkRequest) -> Result<Network> {
        if self.active(&request.name).is_ok() {
            return Err(Error::NetworkTaken(request.name));
        }
        let failed = Error::kernel("listing routes and interfaces");
        let around =
            link::routes(&mut kernel.route).and_then(|routes| Ok((routes, link::list(&mut kernel.route)?)));
        let (mut taken, links) = around.map_err(failed)?;
        taken.extend(
            self.networks
                .read()
                .values()
                .flat_map(|active| active.pools.iter().chain(&active.retired).map(|pool| pool.subnet)),
        );
        if let Some(plane) = &self.overlay {
            let view = plane.view.lock();
            let others = view.networks.values().flat_map(|record| &record.value.subnets);
            taken.extend(others.map(|subnet| subnet.subnet));
        }
        let interfaces = links.into_iter().map(|link| link.name).collect();
        let around = Surroundings { prefix: &self.prefix, taken, interfaces };
        let network = request.resolve(&around)?;
        self.check_driver(&network)?;
        if matches!(&network.driver, NetworkDriver::Overlay(options) if options.encrypted) {
            driver::tunnel::probe(&mut kernel.route)?;
        }
        Ok(network)
    }

    /// What is known of a network.
    pub(super) fn status(&self, active: &Active) -> Result<NetworkStatus> {
        let endpoints = self.store.sandboxes()?.into_iter().flat_map(|sandbox| {
            let id = sandbox.id;
            sandbox.endpoints.into_iter().map(move |endpoint| (id.clone(), endpoint))
        });
        Ok(NetworkStatus {
            network: active.network.clone(),
            built_in: self.is_built_in(&active.network),
            pools: active.pools.clone(),
            endpoints: endpoints.filter(|(_, endpoint)| endpoint.network == active.network.name).collect(),
        })
    }

    /// All pools with their leases.
    pub(super) fn pool_statuses(&self) -> Result<Vec<PoolStatus>> {
        // Never committed: nothing is written.
        let tx = self.store.write()?;
        let pools = self.ipam.pools(&tx)?;
        let mut statuses: Vec<_> =
            pools.into_iter().map(|pool| PoolStatus { pool, leases: Vec::new() }).collect();
        for (id, address, lease) in self.ipam.leases(&tx)? {
            if let Some(status) = statuses.iter_mut().find(|status| status.pool.id == id) {
                status.leases.push((address, lease));
            }
        }
        Ok(statuses)
    }

    pub(super) fn is_built_in(&self, network: &Network) -> bool {
        network.name == self.default_network
            || matches!(network.driver, NetworkDriver::Host | NetworkDriver::None)
    }

    /// Removes the defined networks that nobody has joined. Returns their names, and what could not be removed.
    pub(super) fn prune(&self, kernel: &mut Kernel) -> (Vec<String>, Vec<Error>) {
        let mut names: Vec<_> = self.networks.read().keys().cloned().collect();
        names.sort();
        let (mut removed, mut errors) = (Vec::new(), Vec::new());
        for name in names {
            let overlay = |active: Arc<Active>| matches!(active.network.driver, NetworkDriver::Overlay(_));
            if self.active(&name).is_ok_and(overlay) {
                continue;
            }
            match self.delete_network(kernel, &name) {
                Ok(()) => removed.push(name),
                Err(Error::NetworkInUse { .. } | Error::BuiltIn(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        (removed, errors)
    }

    pub(super) fn create_network(&self, kernel: &mut Kernel, network: Network) -> Result<()> {
        check_name("network", &network.name)?;
        if let Ok(active) = self.active(&network.name) {
            if active.network != network {
                return Err(Error::NetworkExists(network.name));
            }
            return self.serve(kernel, &active);
        }
        let file = self.definition(&network.name);
        // Checked before it is kept, kept before it is made. One that was kept by an earlier version goes on.
        self.check_driver(&network)?;
        network.subnets().iter().try_for_each(|options| usable(options.subnet))?;
        if let Some(file) = &file {
            let text = encode(&network.name, &network)?;
            replace(file, &text).map_err(|source| Error::File {
                action: "writing",
                path: file.clone(),
                source,
            })?;
        }
        let made = self.activate(kernel, network.clone());
        if made.is_err() {
            let (name, driver) = (network.name.clone(), driver::of(&network));
            let half = Active { network, driver, pools: Vec::new(), retired: Vec::new() };
            let undone = self.dismantle(kernel, &half);
            for error in undone.err().into_iter() {
                tracing::warn!(network = name, %error, "undoing a network that could not be made");
            }
            let _ = file.map(fs::remove_file);
        }
        made
    }

    pub(super) fn delete_network(&self, kernel: &mut Kernel, name: &str) -> Result<()> {
        let Ok(active) = self.active(name) else { return Ok(()) };
        if self.is_built_in(&active.network) {
            return Err(Error::BuiltIn(name.to_owned()));
        }
        let users: Vec<_> = self
            .store
            .sandboxes()?
            .into_iter()
            .filter(|sandbox| sandbox.endpoints.iter().any(|endpoint| endpoint.network == name))
            .collect();
        if let Some(first) = users.first() {
            let (network, first) = (name.to_owned(), first.id.clone());
            return Err(Error::NetworkInUse { network, endpoints: users.len(), first });
        }
        self.dismantle(kernel, &active)?;
        if let Some(file) = self.definition(name) {
            match fs::remove_file(&file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::File { action: "removing", path: file, source });
                }
                _ => {}
            }
        }
        self.networks.write().remove(name);
        Ok(())
    }

    /// Takes a network's parts out of kernel and records.
    fn dismantle(&self, kernel: &mut Kernel, active: &Active) -> Result<()> {
        let network = &active.network;
        let elements = active.elements();
        if !elements.is_empty() {
            let others: BTreeSet<_> = self
                .networks
                .read()
                .values()
                .filter(|active| active.network.name != network.name)
                .flat_map(|active| active.elements())
                .collect();
            let ours = elements.difference(&others).cloned().collect();
            self.firewall.remove(&mut kernel.filter, &ours)?;
        }
        active.driver.delete_network(&mut self.context(kernel), network)?;
        if let Some(plane) = &self.overlay {
            plane.applied.lock().remove(&network.name);
            self.resolvers.directory().replace(&network.name, NAMES_SOURCE, Vec::new());
        }
        let tx = self.store.write()?;
        for pool in self.ipam.pools(&tx)?.iter().filter(|pool| pool.network == network.name) {
            self.ipam.release_pool(&tx, pool.id)?;
        }
        commit(tx)
    }

    pub(super) fn remove_all(&self, kernel: &mut Kernel) -> Result<(), Vec<Error>> {
        let mut errors = Vec::new();
        match self.store.sandboxes() {
            Ok(sandboxes) => {
                for sandbox in sandboxes {
                    errors.extend(self.delete_sandbox(kernel, &sandbox.id, true).err().into_iter().flatten());
                }
            }
            Err(error) => errors.push(error),
        }
        // Interfaces whose namespaces somebody still holds.
        let mut report = super::Report::default();
        self.reconcile_links(kernel, &[], &mut report);
        errors.append(&mut report.errors);
        let networks: Vec<_> = self.networks.write().drain().map(|(_, active)| active).collect();
        for active in networks {
            errors.extend(self.dismantle(kernel, &active).err());
        }
        errors.extend(self.remove_tunnel(kernel).err());
        errors.extend(self.firewall.delete(&mut kernel.filter).err());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    // === Definitions ===

    pub(super) fn definition(&self, name: &str) -> Option<PathBuf> {
        self.definitions.as_ref().map(|directory| directory.join(format!("{name}.json")))
    }

    /// The networks that were defined in earlier lives.
    pub(super) fn defined(&self) -> Result<Vec<Network>> {
        let Some(directory) = &self.definitions else { return Ok(Vec::new()) };
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| Error::File { action: "reading", path, source }
        };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed(directory))?,
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        files.sort();
        files
            .iter()
            .map(|file| decode(&file.to_string_lossy(), &fs::read(file).map_err(failed(file))?))
            .collect()
    }
}

/// Writes a file so that it is whole or the old one, also after a power loss.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
