//! Network drivers: how a sandbox is attached to a network.
//!
//! The calls are libnetwork's. They run on a worker thread, may be repeated any number of times, and are undone by their
//! counterparts whatever is left of what they made. Addresses are IPAM's matter, published ports the firewall's: a driver makes
//! interfaces.

mod addresses;
mod bridge;
mod host;
mod inside;
pub(crate) mod limits;
mod none;
mod overlay;
mod sublink;
pub(crate) mod tunnel;

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    error::Result,
    ipam::Pool,
    model::{Bandwidth, Endpoint, EndpointOptions, Network, NetworkDriver, Sandbox, SubnetOptions},
    overlay::UnderlayState,
    worker::Kernel,
};

/// What a driver may use while it works.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) kernel: &'a mut Kernel,
    /// First part of the host's interface names.
    pub(crate) prefix: &'a str,
    /// Where overlays leave the host.
    pub(crate) underlay: UnderlayState,
}

/// An address IPAM has leased for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The address with its subnet's prefix length.
    pub address: IpNetwork,
    /// The subnet's gateway.
    pub gateway: IpAddr,
    /// The pool.
    pub pool: u64,
}

/// What an endpoint is decided on beside its addresses: read from the kernel before anything is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// First part of the host's interface names.
    prefix: &'a str,
    /// Of the interface that the endpoint's will be on; 0: there is none.
    mtu: u32,
    /// MAC of that interface, where the endpoint's depends on it.
    mac: Option<[u8; 6]>,
}

/// A kind of network.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The subnets that need pools.
    fn subnets(&self) -> &[SubnetOptions] {
        &[]
    }

    /// Whether other hosts give addresses of the subnets out as well.
    fn shares_subnets(&self) -> bool {
        false
    }

    /// Makes what the network needs on the host, or what is missing of it.
    ///
    /// # Errors
    /// The kernel refuses.
    fn create_network(&self, context: &mut Context<'_>, network: &Network, pools: &[Pool]) -> Result<()>;

    /// Removes what pools have on the host that are the network's no longer.
    ///
    /// # Errors
    /// The kernel refuses. What is gone already is no error.
    fn retire_pools(&self, context: &mut Context<'_>, network: &Network, pools: &[Pool]) -> Result<()> {
        let _ = (context, network, pools);
        Ok(())
    }

    /// Removes what the network has on the host.
    ///
    /// # Errors
    /// The kernel refuses. What is gone already is no error.
    fn delete_network(&self, context: &mut Context<'_>, network: &Network) -> Result<()>;

    /// Looks at what endpoints of the network stand on. Nothing is recorded yet.
    ///
    /// # Errors
    /// What the network has on the host is gone.
    fn survey<'a>(&self, context: &mut Context<'a>) -> Result<Ground<'a>> {
        Ok(Ground { prefix: context.prefix, mtu: 0, mac: None })
    }

    /// Decides what the endpoint will be. Nothing is made yet: this is what gets recorded, within the transaction that does it. The
    /// kernel is not asked here, as everybody else waits meanwhile.
    ///
    /// # Errors
    /// The options make no sense for this driver.
    fn create_endpoint(
        &self,
        ground: Ground<'_>,
        network: &Network,
        sandbox: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint>;

    /// Whether the sandbox is attached as recorded, where the host's interfaces don't show it.
    ///
    /// # Errors
    /// The namespace is gone, or the kernel refuses.
    fn is_attached(&self, context: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<bool> {
        let _ = (context, sandbox, endpoint);
        Ok(true)
    }

    /// Attaches the sandbox.
    ///
    /// # Errors
    /// The namespace is gone, the interface name is taken, or the kernel refuses.
    fn join(
        &self,
        context: &mut Context<'_>,
        network: &Network,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()>;

    /// Detaches the sandbox now. May wait for the kernel.
    ///
    /// # Errors
    /// The kernel refuses. What is gone already is no error.
    fn leave(&self, context: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<()>;

    /// Removes what [`Driver::create_endpoint`] made beside the record; the drivers here make nothing.
    ///
    /// # Errors
    /// The kernel refuses. What is gone already is no error.
    fn delete_endpoint(
        &self,
        context: &mut Context<'_>,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        let _ = (context, sandbox, endpoint);
        Ok(())
    }
}

/// The driver of a network.
pub(crate) fn of(network: &Network) -> Box<dyn Driver> {
    match &network.driver {
        NetworkDriver::Bridge(options) => Box::new(bridge::Bridge::new(options.clone())),
        NetworkDriver::Overlay(options) => Box::new(overlay::Overlay::new(options.clone())),
        NetworkDriver::Macvlan(mode, parent) => {
            Box::new(sublink::Sublink::new(sublink::Kind::Macvlan(*mode), parent.clone()))
        }
        NetworkDriver::Ipvlan(mode, parent) => {
            Box::new(sublink::Sublink::new(sublink::Kind::Ipvlan(*mode), parent.clone()))
        }
        NetworkDriver::Addresses(subnets) => Box::new(addresses::Addresses::new(subnets.clone())),
        NetworkDriver::Host => Box::new(host::Host),
        NetworkDriver::None => Box::new(none::None),
    }
}

/// An endpoint with the addresses it was assigned and what its options say.
fn addressed_endpoint(network: &Network, options: &EndpointOptions, assigned: &[Assigned]) -> Endpoint {
    Endpoint {
        addresses: assigned.iter().map(|assigned| assigned.address).collect(),
        gateways: assigned.iter().map(|assigned| assigned.gateway).collect(),
        pools: assigned.iter().map(|assigned| assigned.pool).collect(),
        default_route: options.default_route && !network.internal(),
        priority: options.priority,
        aliases: options.aliases.clone(),
        bandwidth: options.bandwidth,
        ports: options.ports.clone(),
        ..bare_endpoint(network, &options.interface)
    }
}

/// A MAC that follows the address, so that neighbours who remember a reused address are right; without an IPv4 address one
/// that follows the endpoint. The first byte says "locally administered, unicast".
fn mac(assigned: &[Assigned], hash: u64) -> [u8; 6] {
    let v4 = assigned.iter().find_map(|assigned| match assigned.address.ip() {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    match v4 {
        Some([a, b, c, d]) => [0x0a, 0x58, a, b, c, d],
        None => {
            let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
            [0x0e, a, b, c, d, e]
        }
    }
}

/// An endpoint without interface, addresses and ports of the host.
fn bare_endpoint(network: &Network, interface: &str) -> Endpoint {
    Endpoint {
        network: network.name.clone(),
        interface: interface.to_owned(),
        host_interface: None,
        addresses: Vec::new(),
        gateways: Vec::new(),
        mac: None,
        mtu: 0,
        default_route: false,
        metric: 0,
        priority: 0,
        aliases: Vec::new(),
        bandwidth: Bandwidth::default(),
        ports: Vec::new(),
        pools: Vec::new(),
    }
}
