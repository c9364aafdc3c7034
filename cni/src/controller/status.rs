//! What the controller tells of networks, pools and its own work.

use std::net::IpAddr;

use crate::{
    address::bits,
    error::Error,
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
    /// Whether every address that is given out by itself is leased.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let Pool { range: (first, last), subnet, .. } = &self.pool;
        let range = bits(*first)..=bits(*last);
        let leased = self.leases.iter().filter(|(address, _)| range.contains(&bits(*address))).count();
        let withheld = self.pool.withheld().into_iter().filter(|address| range.contains(address)).count();
        let size = range.end() - range.start() + 1;
        let taken = u128::try_from(leased + withheld).unwrap_or(u128::MAX);
        subnet.is_ipv4() && taken >= size
    }
}
