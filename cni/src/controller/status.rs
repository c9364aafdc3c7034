//! What the controller tells of networks, pools and its own work.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Controller, Inner};
use crate::{
    address::bits,
    error::{Error, Result},
    ipam::{Lease, Pool},
    model::{Endpoint, Network},
};

/// What [`Controller::reconcile`](super::Controller::reconcile) found and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Sandboxes that were recorded and are not live: undone.
    pub removed_sandboxes: Vec<String>,
    /// Interfaces of ours that no record owns: deleted.
    pub removed_links: Vec<String>,
    /// Leases that no endpoint owns: ended.
    pub removed_leases: usize,
    /// Host port claims that no sandbox owns: ended.
    pub removed_ports: usize,
    /// Set elements that no record owns: removed.
    pub removed_elements: usize,
    /// Set elements that were missing: added.
    pub restored_elements: usize,
    /// Endpoints whose interface was missing or detached: joined again, as sandbox and network.
    pub restored_endpoints: Vec<(String, String)>,
    /// What could not be done.
    pub errors: Vec<Error>,
}

impl Report {
    /// Whether records and kernel agreed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.removed_sandboxes.is_empty()
            && self.removed_links.is_empty()
            && self.restored_endpoints.is_empty()
            && self.errors.is_empty()
            && self.removed_leases + self.removed_ports + self.removed_elements + self.restored_elements == 0
    }
}

/// A network and who has joined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// The network.
    pub network: Network,
    /// Part of the daemon: never removed.
    pub built_in: bool,
    /// Its subnets, with what their options left open.
    pub pools: Vec<Pool>,
    /// Who has joined it: sandbox id and endpoint.
    pub endpoints: Vec<(String, Endpoint)>,
}

/// An address pool and who has its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The pool.
    pub pool: Pool,
    /// Its leases by address.
    pub leases: Vec<(IpAddr, Lease)>,
}

impl PoolStatus {
    /// How many of them are leased.
    #[must_use]
    pub fn leased(&self) -> usize {
        let range = bits(self.pool.range.0)..=bits(self.pool.range.1);
        self.leases.iter().filter(|(address, _)| range.contains(&bits(*address))).count()
    }

    /// Whether every address that is given out by itself is leased.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let leased = u128::try_from(self.leased()).unwrap_or(u128::MAX);
        self.pool.subnet.is_ipv4() && leased >= self.pool.capacity()
    }
}

/// How much of a pool is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The network it belongs to.
    pub network: String,
    /// Its subnet.
    pub subnet: IpNetwork,
    /// How many addresses are given out by themselves, leased or not.
    pub capacity: u128,
    /// How many of them endpoints have.
    pub leased: usize,
}

impl Inner {
    /// Counted by the endpoints on record: nobody who leases is waited for.
    fn pool_use(&self) -> Result<Vec<PoolUse>> {
        let sandboxes = self.store.sandboxes()?;
        let endpoints = || sandboxes.iter().flat_map(|sandbox| &sandbox.endpoints);
        let mut used = Vec::new();
        for active in self.networks.read().values() {
            for pool in &active.pools {
                let range = bits(pool.range.0)..=bits(pool.range.1);
                let ours = endpoints().filter(|endpoint| endpoint.network == active.network.name);
                let held = ours.flat_map(|endpoint| &endpoint.addresses).map(|address| address.ip());
                used.push(PoolUse {
                    network: active.network.name.clone(),
                    subnet: pool.subnet,
                    capacity: pool.capacity(),
                    leased: held
                        .filter(|ip| ip.is_ipv4() == pool.subnet.is_ipv4() && range.contains(&bits(*ip)))
                        .count(),
                });
            }
        }
        Ok(used)
    }
}

impl Controller {
    /// How much of each pool is in use. Never waits for the kernel.
    ///
    /// # Errors
    /// The store failed.
    pub fn pool_use(&self) -> Result<Vec<PoolUse>> {
        self.inner.pool_use()
    }
}
