//! To converge: what is, here and in etcd, is made what should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::ResponseHeader;
use ipnetwork::IpNetwork;

use super::Agent;
use crate::{
    controller::{Active, Inner, overlay},
    error::{Error, Result},
    ipam::Block,
    model::{Network, NetworkDriver, OverlayOptions},
    overlay::{
        Session,
        allocation::Standing,
        etcd, network_of, record_of,
        records::{AddressRecord, EndpointRecord},
        view::Change,
    },
    store::{commit, encode},
    worker::Kernel,
};

/// A claim that nobody uses, and of which nobody knows, is given back after this time: one being made is known sooner.
const CLAIM_GRACE: Duration = Duration::from_secs(10);
/// Operations of one transaction; etcd takes 128 unless told otherwise.
const OPERATIONS: usize = 100;

impl Agent {
    /// See the module. Fails only when etcd does.
    pub(super) async fn converge(&mut self, session: &Session, thorough: bool) -> Result<()> {
        let generation = self.plane.generation();
        let revision = self.plane.view.lock().revision;
        self.networks(thorough).await;
        self.sync_tunnel().await;
        let overlays = self.overlays();
        for active in &overlays {
            if let Err(error) = self.settle(active).await {
                tracing::warn!(network = active.network.name, %error, "holding blocks against the allocation");
            }
        }
        self.publish(session, &overlays).await?;
        for active in overlays {
            let name = active.network.name.clone();
            let inner = Arc::clone(&self.controller.inner);
            // Nothing is made of a network that is being removed.
            let shared = Arc::clone(&self.controller.gate).read_owned().await;
            let sync = move |kernel: &mut Kernel| {
                let _shared = shared;
                match inner.active(&active.network.name) {
                    Ok(now) if !Arc::ptr_eq(&now, &active) => Ok(()),
                    Err(_) => Ok(()),
                    // What is missing of it is made, as when the underlay was late.
                    Ok(_) if thorough => inner.serve(kernel, &active),
                    Ok(_) => inner.sync_peers(kernel, &active),
                }
            };
            let synced = self.controller.workers.run("telling the kernel of peers", sync).await;
            if let Err(error) | Ok(Err(error)) = synced {
                self.complain(Some(&name), &error);
            }
        }
        if thorough {
            // The tunnel may have been made anew with a network above.
            self.sync_tunnel().await;
        }
        self.plane.settled(generation, revision);
        Ok(())
    }

    /// Holds the tunnel against what the others told of theirs.
    pub(super) async fn sync_tunnel(&mut self) {
        let inner = Arc::clone(&self.controller.inner);
        let shared = Arc::clone(&self.controller.gate).read_owned().await;
        let sync = move |kernel: &mut Kernel| {
            let _shared = shared;
            inner.sync_tunnel(kernel)
        };
        match self.controller.workers.run("telling the kernel of the tunnel's peers", sync).await {
            Ok(Ok(tunnel)) => self.tunnel = tunnel,
            Err(error) | Ok(Err(error)) => self.complain(None, &error),
        }
    }

    fn overlays(&self) -> Vec<Arc<Active>> {
        let networks = self.controller.inner.networks.read();
        let overlay = |active: &&Arc<Active>| matches!(active.network.driver, NetworkDriver::Overlay(_));
        networks.values().filter(overlay).cloned().collect()
    }

    // === Networks ===

    /// Makes what others made, and removes what others removed.
    async fn networks(&mut self, thorough: bool) {
        let (wanted, revision) = {
            let view = self.plane.view.lock();
            let prefix = &self.controller.inner.prefix;
            let wanted: BTreeMap<String, Network> = view
                .networks
                .values()
                .map(|record| (record.value.name.clone(), network_of(&record.value, prefix)))
                .collect();
            (wanted, view.revision)
        };
        if thorough {
            self.plane.created.lock().retain(|_, made| *made > revision);
        }
        if self.replaced {
            self.replaced = !self.put_back(&wanted, revision).await;
        }
        for active in self.overlays() {
            let name = &active.network.name;
            let young = self.plane.created.lock().get(name).is_some_and(|made| *made > revision);
            if young || wanted.get(name) == Some(&active.network) {
                continue;
            }
            let name = name.clone();
            let removed = {
                let name = name.clone();
                let remove = move |inner: &Inner, kernel: &mut Kernel| inner.delete_network(kernel, &name);
                self.controller.alone("removing a network that others removed", remove).await
            };
            match removed.and_then(|removed| removed) {
                Ok(()) => tracing::info!(network = name, "removed, as on another host"),
                Err(error) => self.complain(Some(&name), &error),
            }
        }
        self.plane.refused.lock().retain(|name, _| wanted.contains_key(name));
        for (name, network) in wanted {
            match self.controller.inner.active(&name) {
                Ok(active) if active.network == network => {
                    self.complaints.remove(&Some(name));
                    continue;
                }
                Ok(active) if matches!(active.network.driver, NetworkDriver::Overlay(_)) => continue,
                Ok(_) => {
                    self.complain(Some(&name), &Error::NetworkTaken(name.clone()));
                    continue;
                }
                Err(_) if !thorough && self.plane.refused.lock().contains_key(&name) => continue,
                Err(_) => {}
            }
            let make = move |inner: &Inner, kernel: &mut Kernel| inner.create_network(kernel, network);
            let made = self.controller.alone("making a network that another host made", make).await;
            match made.and_then(|made| made) {
                Ok(()) => {
                    self.plane.refused.lock().remove(&name);
                    tracing::info!(network = name, "made, as on another host");
                }
                Err(error) => {
                    self.plane.refused.lock().insert(name.clone(), error.to_string());
                    self.complain(Some(&name), &error);
                }
            }
        }
    }

    /// Makes etcd have the networks again that it has lost and that sandboxes here are on; one that nobody is on goes, as etcd has it.
    /// Returns whether that is done.
    async fn put_back(&mut self, wanted: &BTreeMap<String, Network>, heard: i64) -> bool {
        let mut done = true;
        for active in self.overlays() {
            let NetworkDriver::Overlay(options) = &active.network.driver else { continue };
            let name = &active.network.name;
            if wanted.contains_key(name) {
                continue;
            }
            let rights = match self.rights(&active).await {
                Ok(Some(rights)) => rights,
                Ok(None) => continue,
                Err(error) => {
                    self.complain(Some(name), &error);
                    done = false;
                    continue;
                }
            };
            let record = record_of(&active.network, options);
            match overlay::redefine(&self.plane, record, &rights).await {
                Ok(revision) => {
                    tracing::info!(network = name, "etcd had lost it: put back, as sandboxes here are on it");
                    self.plane.created.lock().insert(name.clone(), revision);
                }
                // Another host was faster; the watch tells.
                Err(Error::NetworkTaken(_)) => {
                    self.plane.created.lock().insert(name.clone(), heard + 1);
                }
                Err(error) => {
                    done = done && !matches!(error, Error::Etcd { .. });
                    self.complain(Some(name), &error);
                }
            }
        }
        done
    }

    /// This host's rights to addresses of a network; `None` when nobody here is on it.
    async fn rights(&self, active: &Arc<Active>) -> Result<Option<Vec<Block>>> {
        let (inner, active) = (Arc::clone(&self.controller.inner), Arc::clone(active));
        let read = move |_: &mut Kernel| {
            let sandboxes = inner.store.sandboxes()?;
            let mut endpoints = sandboxes.iter().flat_map(|sandbox| &sandbox.endpoints);
            if !endpoints.any(|endpoint| endpoint.network == active.network.name) {
                return Ok(None);
            }
            let tx = inner.store.write()?;
            let mut rights = Vec::new();
            for pool in &active.pools {
                rights.extend(inner.ipam.blocks(&tx, pool)?);
            }
            Ok(Some(rights))
        };
        self.controller.workers.run("reading this host's addresses", read).await?
    }

    /// Says once what is wrong with a network, or with the tunnel.
    fn complain(&mut self, network: Option<&str>, error: &Error) {
        let (network, text) = (network.map(str::to_owned), error.to_string());
        if self.complaints.get(&network) != Some(&text) {
            tracing::error!(network, error = text, "an overlay is not here as etcd has it");
            self.complaints.insert(network, text);
        }
    }

    // === Addresses ===

    /// Holds this host's blocks of a network against the allocation: what a lost record gave out is taken up again, what passed
    /// to another host is not given out any more, and what etcd has lost is put back.
    async fn settle(&self, active: &Arc<Active>) -> Result<()> {
        let NetworkDriver::Overlay(options) = &active.network.driver else { return Ok(()) };
        let Some(allocation) = self.plane.view.lock().allocations.get(&options.vni).map(|a| a.value.clone())
        else {
            return Ok(());
        };
        let (inner, plane, network) =
            (Arc::clone(&self.controller.inner), Arc::clone(&self.plane), Arc::clone(active));
        let compare = move |_: &mut Kernel| {
            let tx = inner.store.write()?;
            let mut changed = false;
            let leases = inner.ipam.leases(&tx)?;
            let (mut unused, mut forgotten) = (BTreeSet::new(), Vec::new());
            for pool in &network.pools {
                let held = inner.ipam.blocks(&tx, pool)?;
                let ours =
                    allocation.blocks_of(&plane.host).filter(|(block, _)| pool.subnet.contains(block.ip()));
                let ours: Vec<_> = ours.map(|(block, epoch)| overlay::block_of(block, epoch)).collect();
                for block in ours.iter().filter(|block| !held.contains(block)) {
                    inner.ipam.add_block(&tx, pool, block)?;
                    changed = true;
                }
                let claimed: BTreeMap<_, _> = allocation.claims_of(&plane.host).collect();
                for block in &held {
                    let first = block.range.0;
                    match allocation.standing(&plane.host, block) {
                        Standing::Held => {}
                        // Or granted later than what was heard of, which shows when it is put back.
                        Standing::Forgotten => forgotten.push(*block),
                        Standing::Passed => {
                            tracing::warn!(network = network.network.name, %first, "addresses passed to another host");
                            inner.ipam.remove_block(&tx, pool, first)?;
                            changed = true;
                        }
                    }
                }
                for (claim, holder) in &allocation.claims {
                    let theirs = holder.host != plane.host && ours.iter().any(|ours| ours.contains(*claim));
                    let free = !leases.iter().any(|(id, address, _)| *id == pool.id && address == claim);
                    if theirs && free {
                        inner.ipam.withhold(&tx, pool, *claim)?;
                        changed = true;
                    }
                }
                let leased = |claim: &IpAddr| leases.iter().any(|(id, a, _)| *id == pool.id && a == claim);
                unused.extend(claimed.keys().filter(|claim| pool.subnet.contains(**claim) && !leased(claim)));
            }
            if changed {
                commit(tx)?;
            }
            Ok::<_, Error>((unused, forgotten))
        };
        let (unused, forgotten) = self.controller.workers.run("comparing blocks", compare).await??;
        if !forgotten.is_empty() {
            let name = &active.network.name;
            let restored = overlay::restore(&self.plane, name, options.vni, &forgotten).await?;
            if restored > 0 {
                tracing::warn!(network = name, restored, "etcd had lost addresses of this host: put back");
            }
        }
        for claim in self.ripe(options.vni, &unused) {
            self.controller.release_claim(&self.plane, active, claim).await?;
            overlay::unclaim(&self.plane, &active.network.name, options.vni, claim).await?;
        }
        Ok(())
    }

    /// Of the claims that nobody uses those that have been so for a while.
    fn ripe(&self, vni: u32, unused: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let mut idle = self.plane.idle.lock();
        idle.retain(|(network, claim), _| *network != vni || unused.contains(claim));
        let now = Instant::now();
        let mut ripe =
            |claim: &IpAddr| now.duration_since(*idle.entry((vni, *claim)).or_insert(now)) > CLAIM_GRACE;
        unused.iter().copied().filter(|claim| ripe(claim)).collect()
    }

    // === Endpoints ===

    /// Makes etcd say of this host's endpoints what is.
    async fn publish(&self, session: &Session, overlays: &[Arc<Active>]) -> Result<()> {
        const WHAT: &str = "telling of this host's endpoints";
        let plane = &self.plane;
        for active in overlays {
            let NetworkDriver::Overlay(options) = &active.network.driver else { continue };
            let wanted = match self.own_endpoints(active).await {
                Ok(wanted) => wanted,
                Err(error) => {
                    tracing::warn!(network = active.network.name, %error, "reading this host's endpoints");
                    continue;
                }
            };
            let changes = self.differences(options, &wanted, session.lease)?;
            for chunk in changes.chunks(OPERATIONS) {
                // Nothing is written for a network that was removed meanwhile.
                let there = etcd_client::Compare::version(
                    plane.keys.network(&active.network.name),
                    etcd_client::CompareOp::Greater,
                    0,
                );
                let writes = chunk
                    .iter()
                    .map(|(key, value)| match value {
                        Some(value) => etcd::put_leased(key, value.clone(), session.lease),
                        None => etcd::delete(key),
                    })
                    .collect();
                let answer =
                    session.etcd.commit(WHAT, vec![there], writes).await.map_err(Error::etcd(WHAT))?;
                if !answer.succeeded() {
                    break;
                }
                let revision = answer.header().map(ResponseHeader::revision).unwrap_or_default();
                let mut view = plane.view.lock();
                for (key, value) in chunk {
                    let value = value.as_deref();
                    view.apply(&plane.keys, Change { key, value, revision, lease: session.lease });
                }
            }
        }
        Ok(())
    }

    /// Keys to be written, and without a value those to be deleted.
    fn differences(
        &self,
        options: &OverlayOptions,
        wanted: &BTreeMap<String, EndpointRecord>,
        lease: i64,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>> {
        let plane = &self.plane;
        let view = plane.view.lock();
        let known: BTreeMap<&str, _> = view
            .endpoints
            .get(&options.vni)
            .into_iter()
            .flatten()
            .filter(|((host, _), _)| *host == plane.host)
            .map(|((_, sandbox), endpoint)| (sandbox.as_str(), endpoint))
            .collect();
        let mut changes = Vec::new();
        for (sandbox, record) in wanted {
            let same = known
                .get(sandbox.as_str())
                .is_some_and(|known| known.value == *record && known.lease == lease);
            if !same {
                let key = plane.keys.endpoint(options.vni, &plane.host, sandbox);
                let value = encode(&key, record)?;
                changes.push((key, Some(value)));
            }
        }
        for sandbox in known.keys().filter(|sandbox| !wanted.contains_key(**sandbox)) {
            changes.push((plane.keys.endpoint(options.vni, &plane.host, sandbox), None));
        }
        Ok(changes)
    }

    /// This host's endpoints of a network, by sandbox.
    async fn own_endpoints(&self, active: &Arc<Active>) -> Result<BTreeMap<String, EndpointRecord>> {
        let (inner, plane, active) =
            (Arc::clone(&self.controller.inner), Arc::clone(&self.plane), Arc::clone(active));
        let read = move |_: &mut Kernel| {
            let epochs = inner.local_addresses(&active)?;
            let mut found = BTreeMap::new();
            for sandbox in inner.store.sandboxes()? {
                let endpoint = sandbox.endpoints.into_iter().find(|e| e.network == active.network.name);
                let Some((endpoint, mac)) = endpoint.and_then(|e| e.mac.map(|mac| (e, mac))) else {
                    continue;
                };
                let (known_as, ports) =
                    sandbox.naming.map(|naming| (naming.names, naming.ports)).unwrap_or_default();
                let address = |address: &IpNetwork| AddressRecord {
                    address: address.ip(),
                    epoch: epochs.get(&address.ip()).copied().unwrap_or_default(),
                };
                let record = EndpointRecord {
                    addresses: endpoint.addresses.iter().map(address).collect(),
                    mac,
                    names: plane.names(&sandbox.id),
                    aliases: endpoint.aliases,
                    known_as,
                    ports,
                };
                found.insert(sandbox.id, record);
            }
            Ok(found)
        };
        self.controller.workers.run("reading endpoints", read).await?
    }
}
