//! Network drivers: how a sandbox is attached to a network.
//!
//! The calls are libnetwork's. They run on a worker thread, may be repeated any number of times, and are undone by their
//! counterparts whatever is left of what they made. Addresses are IPAM's matter, published ports the firewall's: a driver makes
//! interfaces.

mod bridge;
mod host;
mod none;

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    error::Result,
    ipam::Pool,
    model::{Endpoint, EndpointOptions, Network, NetworkDriver, Sandbox, SubnetOptions},
    worker::Kernel,
};

/// What a driver may use while it works.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) kernel: &'a mut Kernel,
    /// First part of the host's interface names.
    pub(crate) prefix: &'a str,
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

/// A kind of network.
pub trait Driver: fmt::Debug + Send + Sync {
    /// The subnets that need pools.
    fn subnets(&self) -> &[SubnetOptions] {
        &[]
    }

    /// Makes what the network needs on the host, or what is missing of it.
    ///
    /// # Errors
    /// The kernel refuses.
    fn create_network(&self, context: &mut Context<'_>, network: &Network, pools: &[Pool]) -> Result<()>;

    /// Removes what the network has on the host.
    ///
    /// # Errors
    /// The kernel refuses. What is gone already is no error.
    fn delete_network(&self, context: &mut Context<'_>, network: &Network) -> Result<()>;

    /// Decides what the endpoint will be. Nothing is made yet: this is what gets recorded.
    ///
    /// # Errors
    /// The options make no sense for this driver.
    fn create_endpoint(
        &self,
        context: &mut Context<'_>,
        network: &Network,
        sandbox: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint>;

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
        NetworkDriver::Host => Box::new(host::Host),
        NetworkDriver::None => Box::new(none::None),
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
        ports: Vec::new(),
        pools: Vec::new(),
    }
}
