//! Address management: pools (one a subnet of a network) and leases.
//!
//! An [`IpamDriver`] works inside the transaction that records the lease's owner: an address and the endpoint it belongs to
//! become durable together or not at all.

mod embedded;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use redb::WriteTransaction;
use serde::{Deserialize, Serialize};

use crate::{
    address::{bits, limits},
    error::Result,
    model::SubnetOptions,
};

pub use embedded::Embedded;

/// A pool as its driver knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// What leases refer to.
    pub id: u64,
    /// The network it belongs to.
    pub network: String,
    /// The subnet.
    pub subnet: IpNetwork,
    /// First and last address given out.
    pub range: (IpAddr, IpAddr),
    /// The network's own address in it.
    pub gateway: IpAddr,
    /// Never given out, beside what the protocol reserves.
    pub reserved: Vec<IpAddr>,
    /// Hosts share it: only its blocks are given out here.
    #[serde(default)]
    pub shared: bool,
}

impl Pool {
    /// What is inside the subnet and never leased, in order: its own address (for IPv6 the routers' anycast address), IPv4's
    /// broadcast address, the gateway and what was reserved.
    pub(crate) fn withheld(&self) -> Vec<u128> {
        let (first, last) = limits(self.subnet);
        let mut taken = vec![first, bits(self.gateway)];
        if self.subnet.is_ipv4() {
            taken.push(last);
        }
        taken.extend(self.reserved.iter().copied().map(bits));
        taken.sort_unstable();
        taken.dedup();
        taken
    }

    /// How many addresses are given out by themselves, leased or not.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let range = bits(self.range.0)..=bits(self.range.1);
        let withheld = self.withheld().into_iter().filter(|address| range.contains(address)).count();
        let size = (range.end() - range.start()).saturating_add(1);
        size.saturating_sub(u128::try_from(withheld).unwrap_or(u128::MAX))
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The sandbox.
    pub sandbox: String,
    /// The boot it was given out in.
    pub boot: String,
}

/// A part of a pool that this host may give out by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First and last address.
    pub range: (IpAddr, IpAddr),
    /// Since when: rises with every grant of the pool, on whatever host.
    pub epoch: u64,
}

impl Block {
    /// A single address, which is given out only when it is asked for.
    #[must_use]
    pub fn is_claim(&self) -> bool {
        self.range.0 == self.range.1
    }

    /// Whether an address is of it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (first, last) = self.range;
        first.is_ipv4() == address.is_ipv4() && (first..=last).contains(&address)
    }
}

/// Gives out addresses.
pub trait IpamDriver: std::fmt::Debug + Send + Sync {
    /// Makes the driver's tables, so that readers find them. Once, when the store is opened.
    ///
    /// # Errors
    /// The store failed.
    fn prepare(&self, tx: &WriteTransaction) -> Result<()>;

    /// All pools.
    ///
    /// # Errors
    /// The store failed.
    fn pools(&self, tx: &WriteTransaction) -> Result<Vec<Pool>>;

    /// Returns the pool of a network's subnet, made if it is not there. Asking again is free. It may overlap pools of the same
    /// network, which the caller then takes no more addresses from.
    ///
    /// # Errors
    /// The subnet makes no sense, or overlaps another network's pool.
    fn request_pool(&self, tx: &WriteTransaction, network: &str, subnet: &SubnetOptions) -> Result<Pool>;

    /// The same for a subnet that hosts share: nothing of it is given out but of blocks that were added.
    ///
    /// # Errors
    /// The subnet makes no sense, or overlaps another pool.
    fn request_shared_pool(
        &self,
        tx: &WriteTransaction,
        network: &str,
        subnet: &SubnetOptions,
    ) -> Result<Pool>;

    /// Adds a block to a shared pool. One that is there already gets the epoch.
    ///
    /// # Errors
    /// The store failed.
    fn add_block(&self, tx: &WriteTransaction, pool: &Pool, block: &Block) -> Result<()>;

    /// Takes a block away, or what begins with an address: nothing of it is given out any more. Leases stay.
    ///
    /// # Errors
    /// The store failed.
    fn remove_block(&self, tx: &WriteTransaction, pool: &Pool, first: IpAddr) -> Result<()>;

    /// The blocks of a shared pool.
    ///
    /// # Errors
    /// The store failed.
    fn blocks(&self, tx: &WriteTransaction, pool: &Pool) -> Result<Vec<Block>>;

    /// Keeps one free address from being given out.
    ///
    /// # Errors
    /// The store failed.
    fn withhold(&self, tx: &WriteTransaction, pool: &Pool, address: IpAddr) -> Result<()>;

    /// Whether an address can be had without asking for a certain one.
    ///
    /// # Errors
    /// The store failed.
    fn has_free(&self, tx: &WriteTransaction, pool: &Pool) -> Result<bool>;

    /// Forgets a pool and its leases.
    ///
    /// # Errors
    /// The store failed. A pool that is gone already is no error.
    fn release_pool(&self, tx: &WriteTransaction, pool: u64) -> Result<()>;

    /// Leases an address: the wanted one, or the one that has been free longest.
    ///
    /// # Errors
    /// The pool is full; the wanted address is leased, reserved or outside.
    fn request_address(
        &self,
        tx: &WriteTransaction,
        pool: &Pool,
        wanted: Option<IpAddr>,
        lease: &Lease,
    ) -> Result<IpAddr>;

    /// Ends a lease if it is the sandbox's. An address that is free already is no error.
    ///
    /// # Errors
    /// The store failed.
    fn release_address(&self, tx: &WriteTransaction, pool: u64, address: IpAddr, sandbox: &str)
    -> Result<()>;

    /// All leases: pool, address, holder.
    ///
    /// # Errors
    /// The store failed.
    fn leases(&self, tx: &WriteTransaction) -> Result<Vec<(u64, IpAddr, Lease)>>;
}
