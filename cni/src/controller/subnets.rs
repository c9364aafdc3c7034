//! A network's subnets are changed while sandboxes are on it: the kubelet tells the node's pod CIDR when it learns it.
//!
//! ```text
//!   current pools ──(change_subnets)──► retired pools ──(nobody has an address of them)──► gone, with their gateways
//! ```
//!
//! Sandboxes keep the addresses they have. A lease whose address lies in a new pool moves into it, so that it is not given out
//! twice; the others stay in their old pool, which is retired: nothing is leased from it any more, the bridge keeps its
//! gateway, and its subnet is still translated.
//!
//! What was told is kept beside the definitions, with the configuration it stood against: another configuration is the later
//! word and wins.

use std::{fs, io, path::PathBuf, sync::Arc};

use ipnetwork::IpNetwork;
use redb::WriteTransaction;
use serde::{Deserialize, Serialize};

use super::{Active, Inner, networks::replace};
use crate::{
    definition::usable,
    driver,
    error::{Error, Result},
    ipam::{Lease, Pool},
    model::{BridgeOptions, Network, NetworkDriver, SubnetOptions},
    store::{self, commit, decode, encode},
    worker::Kernel,
};

/// Subnets that replace the configured ones.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// What was configured then.
    configured: Vec<SubnetOptions>,
    /// What holds.
    subnets: Vec<SubnetOptions>,
}

impl Inner {
    /// The default network as it was last told to be.
    pub(super) fn as_told(&self, network: Network) -> Network {
        let NetworkDriver::Bridge(options) = &network.driver else { return network };
        match self.told(&network.name) {
            Ok(Some(told)) if told.configured == options.subnets => {
                with_subnets(&network, options, told.subnets)
            }
            Ok(Some(_)) => {
                tracing::info!(
                    network = network.name,
                    "its configuration has changed: subnets told before are dropped"
                );
                network
            }
            Ok(None) => network,
            Err(error) => {
                tracing::warn!(network = network.name, %error, "subnets told before are not known: it has the configured ones");
                network
            }
        }
    }

    /// Gives a network other subnets. Returns whether they are others.
    pub(super) fn change_subnets(
        &self,
        kernel: &mut Kernel,
        name: &str,
        wanted: Option<&[IpNetwork]>,
    ) -> Result<bool> {
        let active = self.active(name)?;
        let NetworkDriver::Bridge(options) = &active.network.driver else {
            return Err(Error::invalid("network", name, "only a bridge network's subnets can be changed"));
        };
        let configured = if name == self.default_network { self.configured.as_slice() } else { &[] };
        let subnets = match wanted {
            None => configured.to_vec(),
            Some(wanted) => {
                // One that is known keeps its gateway and what is reserved.
                let known = |subnet: &IpNetwork| {
                    options.subnets.iter().chain(configured).find(|known| known.subnet == *subnet).cloned()
                };
                wanted
                    .iter()
                    .map(|subnet| known(subnet).unwrap_or_else(|| SubnetOptions::new(*subnet)))
                    .collect()
            }
        };
        if subnets == options.subnets {
            self.serve(kernel, &active)?;
            return Ok(false);
        }
        subnets.iter().try_for_each(|options| usable(options.subnet))?;
        let network = with_subnets(&active.network, options, subnets);
        self.check_driver(&network)?;
        let tx = self.store.write()?;
        let changed = self.pooled(&tx, network)?;
        self.check_gateways(&tx, &changed)?;
        // Kept before it holds: what was cut off in between is done by the next start.
        self.keep_subnets(&changed.network)?;
        commit(tx)?;
        tracing::info!(
            network = name,
            subnets = ?changed.network.subnets().iter().map(|options| options.subnet.to_string()).collect::<Vec<_>>(),
            retired = changed.retired.len(),
            "subnets changed"
        );
        self.networks.write().insert(name.to_owned(), Arc::new(changed));
        self.retire(kernel, name)?;
        self.serve(kernel, &*self.active(name)?)?;
        self.firewall.align(&mut kernel.filter, &self.desired_elements()?)?;
        Ok(true)
    }

    /// Whether the default network has other subnets than the configured ones.
    pub(super) fn is_told(&self) -> bool {
        self.active(&self.default_network).is_ok_and(|active| active.network.subnets() != self.configured)
    }

    /// A network with its pools. Leases that lie in them move into them.
    pub(super) fn pooled(&self, tx: &WriteTransaction, network: Network) -> Result<Active> {
        let driver = driver::of(&network);
        let pools = driver
            .subnets()
            .iter()
            .map(|subnet| match driver.shares_subnets() {
                true => self.ipam.request_shared_pool(tx, &network.name, subnet),
                false => self.ipam.request_pool(tx, &network.name, subnet),
            })
            .collect::<Result<Vec<_>>>()?;
        let mut retired = self.ipam.pools(tx)?;
        retired.retain(|pool| pool.network == network.name && !pools.contains(pool));
        if !retired.is_empty() {
            self.adopt(tx, &network.name, &pools)?;
        }
        Ok(Active { network, driver, pools, retired })
    }

    /// Moves leases of a network's earlier pools into those that hold now, where these have their addresses.
    fn adopt(&self, tx: &WriteTransaction, network: &str, pools: &[Pool]) -> Result<()> {
        for mut sandbox in self.store.sandboxes()? {
            let mut moved = false;
            for endpoint in sandbox.endpoints.iter_mut().filter(|endpoint| endpoint.network == network) {
                for (address, held) in endpoint.addresses.iter().zip(&mut endpoint.pools) {
                    let address = address.ip();
                    let Some(pool) = pools.iter().find(|pool| pool.subnet.contains(address)) else {
                        continue;
                    };
                    if pool.id == *held {
                        continue;
                    }
                    if pool.gateway == address {
                        let holder = format!("sandbox {:?}", sandbox.id);
                        return Err(Error::GatewayTaken { subnet: pool.subnet, gateway: address, holder });
                    }
                    let lease = Lease { sandbox: sandbox.id.clone(), boot: self.store.boot_id().to_owned() };
                    self.ipam.release_address(tx, *held, address, &sandbox.id)?;
                    self.ipam.request_address(tx, pool, Some(address), &lease)?;
                    *held = pool.id;
                    moved = true;
                }
            }
            if moved {
                store::put_sandbox(tx, &sandbox)?;
            }
        }
        Ok(())
    }

    /// The kernel has an IPv6 address once, whatever its prefix: a gateway can't be that of two subnets.
    fn check_gateways(&self, tx: &WriteTransaction, active: &Active) -> Result<()> {
        let leases = self.ipam.leases(tx)?;
        for pool in active.pools.iter().filter(|pool| pool.subnet.is_ipv6()) {
            let same = |old: &&Pool| old.gateway == pool.gateway && old.subnet != pool.subnet;
            for old in active.retired.iter().filter(same) {
                let count = leases.iter().filter(|(id, ..)| *id == old.id).count();
                if count > 0 {
                    let holder = format!(
                        "subnet {} of before, which {count} sandboxes still have addresses of",
                        old.subnet
                    );
                    return Err(Error::GatewayTaken { subnet: pool.subnet, gateway: pool.gateway, holder });
                }
            }
        }
        Ok(())
    }

    /// Lets go of a network's retired pools that nobody has an address of: gateways first, then the records. Returns whether
    /// there were any.
    pub(super) fn retire(&self, kernel: &mut Kernel, name: &str) -> Result<bool> {
        let active = self.active(name)?;
        if active.retired.is_empty() {
            return Ok(false);
        }
        // Nobody gets an address of these any more: what is free now stays so while the kernel is told.
        let leases = self.ipam.leases(&self.store.write()?)?;
        let in_use = |pool: &Pool| leases.iter().any(|(id, ..)| *id == pool.id);
        let (retired, unused): (Vec<_>, Vec<_>) = active.retired.iter().cloned().partition(in_use);
        if unused.is_empty() {
            return Ok(false);
        }
        // An address that a pool in use has as well stays: the kernel knows it by address and prefix.
        let shared = |old: &Pool| {
            active
                .pools
                .iter()
                .chain(&retired)
                .any(|pool| pool.gateway == old.gateway && pool.subnet.prefix() == old.subnet.prefix())
        };
        let gateways: Vec<_> = unused.iter().filter(|pool| !shared(pool)).cloned().collect();
        active.driver.retire_pools(&mut self.context(kernel), &active.network, &gateways)?;
        let tx = self.store.write()?;
        for pool in &unused {
            tracing::info!(network = name, subnet = %pool.subnet, "nobody has an address of a subnet of before: gone");
            self.ipam.release_pool(&tx, pool.id)?;
        }
        commit(tx)?;
        let Active { network, pools, .. } = &*active;
        let driver = driver::of(network);
        let changed = Active { network: network.clone(), driver, pools: pools.clone(), retired };
        self.networks.write().insert(name.to_owned(), Arc::new(changed));
        Ok(true)
    }

    /// The same for all networks, and what follows in the kernel.
    pub(super) fn retire_all(&self, kernel: &mut Kernel) -> Result<()> {
        let names: Vec<_> = self.networks.read().keys().cloned().collect();
        let mut changed = false;
        for name in names {
            if self.retire(kernel, &name)? {
                changed = true;
                self.serve(kernel, &*self.active(&name)?)?;
            }
        }
        if changed {
            self.firewall.align(&mut kernel.filter, &self.desired_elements()?)?;
        }
        Ok(())
    }

    // === On disk ===

    fn told_file(&self, name: &str) -> Option<PathBuf> {
        self.definitions.as_ref().map(|directory| directory.join(format!("{name}.subnets")))
    }

    fn told(&self, name: &str) -> Result<Option<Told>> {
        let Some(path) = self.told_file(name) else { return Ok(None) };
        match fs::read(&path) {
            Ok(text) => decode(&path.to_string_lossy(), &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { action: "reading", path, source }),
        }
    }

    fn keep_subnets(&self, network: &Network) -> Result<()> {
        let (file, text) = if network.name == self.default_network {
            let (configured, subnets) = (self.configured.clone(), network.subnets().to_vec());
            (self.told_file(&network.name), encode(&network.name, &Told { configured, subnets })?)
        } else {
            (self.definition(&network.name), encode(&network.name, network)?)
        };
        let Some(path) = file else { return Ok(()) };
        replace(&path, &text).map_err(|source| Error::File { action: "writing", path, source })
    }
}

fn with_subnets(network: &Network, options: &BridgeOptions, subnets: Vec<SubnetOptions>) -> Network {
    let options = BridgeOptions { subnets, ..options.clone() };
    Network { driver: NetworkDriver::Bridge(options), ..network.clone() }
}
