//! Reconciliation: records against the kernel, both ways.
//!
//! In order: undo recorded sandboxes that are not live; make the networks' own parts; align the firewall's sets; delete
//! interfaces nobody owns; join again what is missing; end leases and claims nobody owns. An error in one part does not keep
//! the next from being done.

use std::collections::{HashMap, HashSet};

use super::{Inner, Report, guest::is_live};
use crate::{
    driver::limits,
    error::{Error, Result},
    link::{self, Link},
    model::{Endpoint, Sandbox},
    names::INTERFACE_NAME_MAX,
    store::{self, commit},
    worker::Kernel,
};

impl Inner {
    pub(super) fn reconcile(&self, kernel: &mut Kernel, live: &HashSet<String>) -> Report {
        let mut report = Report::default();
        let sandboxes = take(&mut report.errors, self.store.sandboxes()).unwrap_or_default();
        for sandbox in sandboxes.iter().filter(|sandbox| !is_live(sandbox, live)) {
            match self.delete_sandbox(kernel, &sandbox.id, true) {
                Ok(_) => report.removed_sandboxes.push(sandbox.id.clone()),
                Err(errors) => report.errors.extend(errors),
            }
        }
        // The table comes first: networks put elements into its sets.
        take(&mut report.errors, self.firewall.ensure(&mut kernel.filter));
        if let Some(plane) = &self.overlay {
            plane.look_below(&mut kernel.route);
            // The kernel is asked what it knows.
            plane.applied.lock().clear();
        }
        let networks: Vec<_> = self.networks.read().values().cloned().collect();
        for active in networks {
            take(&mut report.errors, self.serve(kernel, &active));
        }
        let aligned =
            self.desired_elements().and_then(|desired| self.firewall.align(&mut kernel.filter, &desired));
        if let Some((added, removed)) = take(&mut report.errors, aligned) {
            report.restored_elements = added;
            report.removed_elements = removed;
        }
        self.reconcile_sublinks(kernel, &mut report);
        // What could not be deleted above is still on record, and still owns its things.
        let Some(sandboxes) = take(&mut report.errors, self.store.sandboxes()) else { return report };
        self.reconcile_links(kernel, &sandboxes, &mut report);
        for sandbox in &sandboxes {
            take(&mut report.errors, self.align_names(sandbox));
        }
        let swept = self.sweep(&sandboxes);
        if let Some((leases, ports)) = take(&mut report.errors, swept) {
            report.removed_leases = leases;
            report.removed_ports = ports;
        }
        take(&mut report.errors, self.retire_all(kernel));
        report
    }

    pub(super) fn reconcile_links(&self, kernel: &mut Kernel, sandboxes: &[Sandbox], report: &mut Report) {
        let links = link::list(&mut kernel.route).map_err(Error::kernel("listing interfaces"));
        let Some(links) = take(&mut report.errors, links) else { return };
        let bridges: HashSet<u32> = self
            .networks
            .read()
            .values()
            .filter_map(|active| {
                let options = active.network.driver.bridge()?;
                links.iter().find(|link| link.name == options.bridge)
            })
            .map(|link| link.index)
            .collect();
        let by_name: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
        let mut owned = HashSet::new();
        for sandbox in sandboxes {
            for endpoint in &sandbox.endpoints {
                let Some(name) = endpoint.host_interface.as_deref() else { continue };
                owned.insert(name);
                let attached =
                    by_name.get(name).and_then(|link| link.master).is_some_and(|m| bridges.contains(&m));
                if attached {
                    take(&mut report.errors, limits::outside(&mut kernel.route, endpoint));
                    continue;
                }
                let joined = self
                    .active(&endpoint.network)
                    .and_then(|active| self.attach(kernel, &active, sandbox, endpoint));
                if take(&mut report.errors, joined).is_some() {
                    report.restored_endpoints.push((sandbox.id.clone(), endpoint.network.clone()));
                }
            }
        }
        for link in links.iter().filter(|link| !owned.contains(link.name.as_str())) {
            if self.is_ours(link) && link.master.is_none_or(|master| bridges.contains(&master)) {
                let deleted = link::delete(&mut kernel.route, &link.name)
                    .map_err(Error::kernel(format!("deleting interface {} that nobody owns", link.name)));
                if take(&mut report.errors, deleted).is_some() {
                    report.removed_links.push(link.name.clone());
                }
            }
        }
    }

    /// Endpoints that don't show among the host's interfaces.
    fn reconcile_sublinks(&self, kernel: &mut Kernel, report: &mut Report) {
        let Some(sandboxes) = take(&mut report.errors, self.store.sandboxes()) else { return };
        for sandbox in &sandboxes {
            let hidden = |endpoint: &&Endpoint| endpoint.has_link() && endpoint.host_interface.is_none();
            for endpoint in sandbox.endpoints.iter().filter(hidden) {
                let attached = self.active(&endpoint.network).and_then(|active| {
                    if active.driver.is_attached(&mut self.context(kernel), sandbox, endpoint)? {
                        return Ok(false);
                    }
                    self.attach(kernel, &active, sandbox, endpoint).map(|()| true)
                });
                if take(&mut report.errors, attached) == Some(true) {
                    report.restored_endpoints.push((sandbox.id.clone(), endpoint.network.clone()));
                }
            }
        }
    }

    /// Whether a link is named as only we name them.
    pub(super) fn is_ours(&self, link: &Link) -> bool {
        let hash = link.name.strip_prefix(&self.prefix);
        link.kind == "veth"
            && link.name.len() == INTERFACE_NAME_MAX
            && hash.is_some_and(|hash| hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    }

    /// Ends leases, claims and pools without an owner. There are none unless records were damaged: owner and lease are one commit.
    fn sweep(&self, sandboxes: &[Sandbox]) -> Result<(usize, usize)> {
        let owners: HashMap<&str, &Sandbox> =
            sandboxes.iter().map(|sandbox| (sandbox.id.as_str(), sandbox)).collect();
        let tx = self.store.write()?;
        let mut leases = 0;
        let current: HashSet<u64> = self
            .networks
            .read()
            .values()
            .flat_map(|active| active.pools.iter().chain(&active.retired))
            .map(|pool| pool.id)
            .collect();
        let mut unused: HashSet<u64> = self.ipam.pools(&tx)?.iter().map(|pool| pool.id).collect();
        unused.retain(|pool| !current.contains(pool));
        for (pool, address, lease) in self.ipam.leases(&tx)? {
            let owned = lease.boot == self.store.boot_id()
                && owners.get(lease.sandbox.as_str()).is_some_and(|sandbox| {
                    sandbox.endpoints.iter().flat_map(|e| &e.addresses).any(|owned| owned.ip() == address)
                });
            if !owned {
                self.ipam.release_address(&tx, pool, address, &lease.sandbox)?;
                leases += 1;
            } else {
                unused.remove(&pool);
            }
        }
        // Pools of networks that are not there any more.
        for pool in unused {
            self.ipam.release_pool(&tx, pool)?;
        }
        let ports = store::release_unowned_ports(&tx, |holder| owners.contains_key(holder))?;
        commit(tx)?;
        Ok((leases, ports))
    }
}

fn take<T>(errors: &mut Vec<Error>, result: Result<T>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}
