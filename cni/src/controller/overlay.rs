//! Overlay networks: making and removing them for all hosts, and getting addresses from the others' common stock.
//!
//! What several hosts have to agree on is a transaction in etcd (`transactions`); what this host says of itself is the agent's.

mod blocks;
#[cfg(test)]
mod tests;
mod transactions;
mod tunnel;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use super::{Active, Controller, Inner, agent};
use crate::{
    address::limits,
    definition::NetworkRequest,
    error::{Error, Result},
    ipam::{Block, Pool},
    link::{self, vxlan},
    model::{Endpoint, Network, NetworkDriver, OverlayOptions},
    overlay::{Applied, NamesOf, Plane, RemoteEndpoint, Status, network_of, record_of},
    resolver::{self, Named},
    store::commit,
    worker::Kernel,
};

pub use blocks::{HeldBlock, Reclaimed};
use transactions::{claim, define, grant, undefine};
pub(super) use transactions::{redefine, restore, unclaim};

/// Before the owners of names that the other hosts told.
pub(super) const NAMES_SOURCE: &str = "etcd/";
/// Digits of a sandbox's id that are a name of it, as on its own host.
const SHORT_ID: usize = 12;

impl Controller {
    /// Begins to take part in overlays; `names` says what a sandbox is called. Call it once, when it is known which sandboxes
    /// there are. Without a control plane in the options nothing happens.
    pub fn serve_overlay(&self, names: NamesOf) {
        if let Some(plane) = &self.inner.overlay {
            plane.set_names(names);
            tokio::spawn(agent::run(self.clone(), Arc::clone(plane)));
        }
    }

    /// What sandboxes are called may have changed: the other hosts are told.
    pub fn announce(&self) {
        if let Some(plane) = &self.inner.overlay {
            plane.notify();
        }
    }

    /// What is known of the other hosts; `None` without a control plane.
    #[must_use]
    pub fn overlay_status(&self) -> Option<Status> {
        self.inner.overlay.as_ref().map(|plane| plane.status())
    }

    /// Who has joined a network on other hosts, with names and addresses; nobody on a network that does not span hosts. Never
    /// waits.
    ///
    /// # Errors
    /// There is no such network.
    pub fn remote_endpoints(&self, network: &str) -> Result<Vec<RemoteEndpoint>> {
        let active = self.inner.active(network)?;
        Ok(match (&self.inner.overlay, &active.network.driver) {
            (Some(plane), NetworkDriver::Overlay(options)) => plane.remote_endpoints(options.vni),
            _ => Vec::new(),
        })
    }

    /// Makes an overlay for all hosts, and here at once.
    pub(super) async fn create_overlay(&self, request: NetworkRequest) -> Result<Network> {
        let plane = self.inner.overlay.clone().ok_or(Error::NoControlPlane)?;
        let network =
            self.alone("checking a network", move |inner, kernel| inner.resolve(kernel, request)).await??;
        let NetworkDriver::Overlay(options) = &network.driver else { return Err(Error::NoControlPlane) };
        let record = record_of(&network, options);
        let (record, revision) = define(&plane, record).await?;
        let network = network_of(&record, &self.inner.prefix);
        // The agent may have heard of it and be faster; making it twice is fine.
        plane.created.lock().insert(record.name.clone(), revision);
        let made = network.clone();
        let made =
            self.alone("creating a network", move |inner, kernel| inner.create_network(kernel, made)).await;
        if let Err(error) = made.and_then(|made| made) {
            if let Err(left) = undefine(&plane, &record.name, record.vni).await {
                tracing::warn!(network = record.name, error = %left, "an overlay that could not be made stays in etcd");
            }
            return Err(error);
        }
        Ok(network)
    }

    /// Removes an overlay on all hosts.
    pub(super) async fn delete_overlay(&self, name: &str, options: &OverlayOptions) -> Result<()> {
        let plane = self.inner.overlay.clone().ok_or(Error::NoControlPlane)?;
        let status = self.status(name)?;
        if let Some((first, _)) = status.endpoints.first() {
            let (network, first, endpoints) = (name.to_owned(), first.clone(), status.endpoints.len());
            return Err(Error::NetworkInUse { network, endpoints, first });
        }
        plane.told().await;
        undefine(&plane, name, options.vni).await?;
        let name = name.to_owned();
        self.alone("deleting a network", move |inner, kernel| inner.delete_network(kernel, &name)).await?
    }

    /// Gets what a join lacked; says whether it can be tried again.
    pub(super) async fn obtain(&self, error: &Error) -> Result<bool> {
        let (network, wanted) = match error {
            Error::PoolExhausted { network, subnet, .. } => (network, Wanted::Block(*subnet)),
            Error::AddressElsewhere { network, address } => (network, Wanted::Claim(*address)),
            _ => return Ok(false),
        };
        let active = self.inner.active(network)?;
        let (Some(plane), NetworkDriver::Overlay(options)) = (&self.inner.overlay, &active.network.driver)
        else {
            return Ok(false);
        };
        let _turn = plane.obtaining.lock().await;
        let pool = active.pools.iter().find(|pool| match wanted {
            Wanted::Block(subnet) => pool.subnet == subnet,
            Wanted::Claim(address) => pool.subnet.contains(address),
        });
        let Some(pool) = pool.cloned() else { return Ok(false) };
        let block = match wanted {
            Wanted::Block(subnet) => {
                if self.has_free(&pool).await? {
                    return Ok(true);
                }
                let chosen = options.subnets.iter().find(|options| options.subnet == subnet);
                let Some(chosen) = chosen else { return Ok(false) };
                grant(plane, network, options, chosen).await?
            }
            Wanted::Claim(address) => {
                let epoch = claim(plane, network, options.vni, address).await?;
                Block { range: (address, address), epoch }
            }
        };
        let inner = Arc::clone(&self.inner);
        let add = move |_: &mut Kernel| {
            let tx = inner.store.write()?;
            inner.ipam.add_block(&tx, &pool, &block)?;
            commit(tx)
        };
        self.workers.run("recording a block", add).await??;
        Ok(true)
    }

    async fn has_free(&self, pool: &Pool) -> Result<bool> {
        let (inner, pool) = (Arc::clone(&self.inner), pool.clone());
        let look = move |_: &mut Kernel| inner.ipam.has_free(&inner.store.write()?, &pool);
        self.workers.run("looking for a free address", look).await?
    }

    /// Tells the other hosts what changed, and gives back single addresses that nobody has any more.
    pub(super) async fn tell(&self, left: &[Endpoint], network: Option<&str>) {
        let Some(plane) = &self.inner.overlay else { return };
        let overlay = |name: &str| {
            let active = self.inner.active(name).ok()?;
            matches!(active.network.driver, NetworkDriver::Overlay(_)).then_some(active)
        };
        let affected: Vec<_> = left.iter().filter_map(|e| Some((overlay(&e.network)?, e))).collect();
        if affected.is_empty() && network.and_then(overlay).is_none() {
            return;
        }
        for (active, endpoint) in affected {
            for address in &endpoint.addresses {
                if let Err(error) = self.release_claim(plane, &active, address.ip()).await {
                    tracing::info!(%error, "a claimed address is given back later");
                }
            }
        }
        plane.told().await;
    }

    /// Gives a claimed address back unless somebody leases it.
    pub(super) async fn release_claim(&self, plane: &Plane, active: &Active, address: IpAddr) -> Result<()> {
        let NetworkDriver::Overlay(options) = &active.network.driver else { return Ok(()) };
        let Some(pool) = active.pools.iter().find(|pool| pool.subnet.contains(address)).cloned() else {
            return Ok(());
        };
        let _turn = plane.obtaining.lock().await;
        let inner = Arc::clone(&self.inner);
        let forget = move |_: &mut Kernel| {
            let tx = inner.store.write()?;
            let claimed = inner.ipam.blocks(&tx, &pool)?.iter().any(|b| b.is_claim() && b.contains(address));
            let leased = inner.ipam.leases(&tx)?.iter().any(|(id, a, _)| *id == pool.id && *a == address);
            if !claimed || leased {
                return Ok(false);
            }
            inner.ipam.remove_block(&tx, &pool, address)?;
            commit(tx).map(|()| true)
        };
        if self.workers.run("giving a claimed address back", forget).await?? {
            unclaim(plane, &active.network.name, options.vni, address).await?;
        }
        Ok(())
    }
}

/// What a join lacked.
#[derive(Clone, Copy)]
enum Wanted {
    Block(IpNetwork),
    Claim(IpAddr),
}

/// A block as the store has it.
pub(super) fn block_of(block: IpNetwork, epoch: u64) -> Block {
    let (first, last) = limits(block);
    let at = |bits| crate::address::address(block, bits);
    Block { range: (at(first), at(last)), epoch }
}

// === On worker threads ===

impl Inner {
    /// Addresses of a network that sandboxes of this host have, each with its epoch.
    pub(super) fn local_addresses(&self, active: &Active) -> Result<HashMap<IpAddr, u64>> {
        let tx = self.store.write()?;
        let mut blocks = Vec::new();
        for pool in &active.pools {
            blocks.extend(self.ipam.blocks(&tx, pool)?);
        }
        drop(tx);
        let sandboxes = self.store.sandboxes()?;
        let endpoints = sandboxes.iter().flat_map(|sandbox| &sandbox.endpoints);
        let ours = endpoints.filter(|endpoint| endpoint.network == active.network.name);
        Ok(ours
            .flat_map(|endpoint| &endpoint.addresses)
            .map(|address| (address.ip(), epoch_of(&blocks, address.ip())))
            .collect())
    }

    /// Lets sandboxes here find those on other hosts by name.
    fn name_peers(&self, plane: &Plane, network: &str, vni: u32) {
        let entry = |remote: RemoteEndpoint| {
            let short = remote.sandbox.get(..SHORT_ID).unwrap_or(&remote.sandbox).to_owned();
            let names = remote.known_as.into_iter().chain([remote.names.name, short]);
            let names = names.chain(remote.names.containers).chain(remote.aliases);
            let names = names.filter(|name| resolver::is_name(name)).collect();
            let owner = format!("{NAMES_SOURCE}{}/{}", remote.host_address, remote.sandbox);
            (owner, Named { names, addresses: remote.addresses, ports: remote.ports })
        };
        let entries = plane.remote_endpoints(vni).into_iter().map(entry).collect();
        self.resolvers.directory().replace(network, NAMES_SOURCE, entries);
    }

    /// Makes the kernel know where the other hosts' addresses are.
    pub(super) fn sync_peers(&self, kernel: &mut Kernel, active: &Active) -> Result<()> {
        let (Some(plane), NetworkDriver::Overlay(options)) = (&self.overlay, &active.network.driver) else {
            return Ok(());
        };
        let failed = |doing: &str| Error::kernel(format!("{doing} VXLAN device {:?}", options.vxlan));
        let found = link::find(&mut kernel.route, &options.vxlan).map_err(failed("looking up"))?;
        // One that is not there is made by reconciliation, and then told.
        let Some(device) = found else { return Ok(()) };
        if plane.view.lock().revision == 0 {
            // Nothing is heard of the others yet: what the kernel knows from before stays.
            return Ok(());
        }
        self.name_peers(plane, &active.network.name, options.vni);
        // One after the other, the later one with what is known then. Whoever asks what is known does not wait for the kernel.
        let _turn = plane.syncing.lock();
        let local = self.local_addresses(active)?;
        let peers = plane.view.lock().peers(options.vni, &plane.host, &local, options.encrypted);
        let mut wanted = vxlan::Entries::default();
        for (address, peer) in &peers.by_address {
            wanted.add(*address, peer.mac, peer.vtep);
        }
        let name = &active.network.name;
        let known = plane.applied.lock().get(name).filter(|applied| applied.index == device.index).cloned();
        let present = match known {
            Some(applied) => applied.entries,
            None => Arc::new(vxlan::entries(&mut kernel.route, device.index).map_err(failed("reading"))?),
        };
        let lost = local.keys().filter(|address| {
            wanted.neighbours.contains_key(*address) && !present.neighbours.contains_key(*address)
        });
        for address in lost {
            tracing::error!(network = name, %address, "a sandbox here has an address that another host has a later right to");
        }
        let below = if options.encrypted { self.tunnel_index(kernel)? } else { 0 };
        let aligned = vxlan::align(&mut kernel.route, (device.index, below), &present, &wanted);
        if aligned.is_err() {
            // The kernel is asked what it has then.
            plane.applied.lock().remove(name);
        }
        let (added, removed) = aligned.map_err(failed("writing to"))?;
        if added + removed > 0 {
            tracing::debug!(network = name, added, removed, "peers changed");
        }
        let now = Applied { index: device.index, entries: Arc::new(wanted), stale: peers.stale };
        plane.applied.lock().insert(name.clone(), now);
        Ok(())
    }
}

/// Since when this host has an address: the latest right counts.
pub(super) fn epoch_of(blocks: &[Block], address: IpAddr) -> u64 {
    blocks.iter().filter(|block| block.contains(address)).map(|block| block.epoch).max().unwrap_or_default()
}
