//! Which host has which addresses of overlays, and taking them from one that is gone for good.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::transactions;
use crate::{
    controller::Controller,
    error::{Error, Result},
};

/// Addresses of an overlay that a host gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBlock {
    /// The network.
    pub network: String,
    /// The block, or a single address that was claimed.
    pub block: IpNetwork,
    /// The host's id.
    pub host: String,
    /// Its name; `None`: its lease ended.
    pub host_name: Option<String>,
    /// Of two rights to an address the one of the higher epoch counts.
    pub epoch: u64,
}

/// What was taken from a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaimed {
    /// The network.
    pub network: String,
    /// How many blocks.
    pub blocks: usize,
    /// How many single addresses.
    pub claims: usize,
}

impl Controller {
    /// All blocks and claims of overlays, as this host has heard of them. Never waits.
    #[must_use]
    pub fn blocks(&self) -> Vec<HeldBlock> {
        let Some(plane) = &self.inner.overlay else { return Vec::new() };
        let view = plane.view.lock();
        let mut all = Vec::new();
        for (network, record) in &view.networks {
            let Some(allocation) = view.allocations.get(&record.value.vni) else { continue };
            let blocks = allocation.value.blocks.iter().map(|(block, holder)| (*block, holder));
            let claims = allocation.value.claims.iter();
            let held = blocks.chain(claims.map(|(claim, holder)| (IpNetwork::from(*claim), holder)));
            all.extend(held.map(|(block, holder)| HeldBlock {
                network: network.clone(),
                block,
                host: holder.host.clone(),
                host_name: view.hosts.get(&holder.host).map(|host| host.value.name.clone()),
                epoch: holder.epoch,
            }));
        }
        all
    }

    /// Takes the addresses of a host that is gone from it, on one network or on all, so that the others can have them. Should it
    /// come back, it gives them out no more. `host`: its id, or the beginning of one that no other has.
    ///
    /// # Errors
    /// No such host has addresses; it is alive; etcd is not reached. What was taken before stays taken.
    pub async fn reclaim(&self, host: &str, network: Option<&str>) -> Result<Vec<Reclaimed>> {
        let plane = self.inner.overlay.clone().ok_or(Error::NoControlPlane)?;
        if let Some(network) = network {
            self.inner.active(network)?;
        }
        let held = self.blocks();
        let hosts: BTreeSet<&str> = held.iter().map(|block| block.host.as_str()).collect();
        let mut matching = hosts.iter().filter(|id| id.starts_with(host));
        let (Some(id), None) = (matching.next(), matching.next()) else {
            return Err(Error::HostNotFound(host.to_owned()));
        };
        let networks: BTreeSet<&str> = held
            .iter()
            .filter(|block| block.host == *id && network.is_none_or(|network| network == block.network))
            .map(|block| block.network.as_str())
            .collect();
        let mut reclaimed = Vec::new();
        for network in networks {
            let vni = plane.view.lock().networks.get(network).map(|record| record.value.vni);
            let Some(vni) = vni else { continue };
            if let Some((blocks, claims)) = transactions::reclaim(&plane, network, vni, id).await? {
                tracing::info!(
                    network,
                    host = id,
                    blocks,
                    claims,
                    "addresses of a host that is gone are free"
                );
                reclaimed.push(Reclaimed { network: network.to_owned(), blocks, claims });
            }
        }
        Ok(reclaimed)
    }
}
