//! The `host` driver: the sandbox *is* the host's stack, nothing is made.

use super::{Assigned, Context, Driver, Ground, bare_endpoint};
use crate::{
    error::Result,
    ipam::Pool,
    model::{Endpoint, EndpointOptions, Network, Sandbox},
};

#[derive(Debug)]
pub(super) struct Host;

impl Driver for Host {
    fn create_network(&self, _: &mut Context<'_>, _: &Network, _: &[Pool]) -> Result<()> {
        Ok(())
    }

    fn delete_network(&self, _: &mut Context<'_>, _: &Network) -> Result<()> {
        Ok(())
    }

    /// Ports are not published: what listens in the sandbox listens on the host.
    fn create_endpoint(
        &self,
        _: Ground<'_>,
        network: &Network,
        _: &Sandbox,
        _: &EndpointOptions,
        _: &[Assigned],
    ) -> Result<Endpoint> {
        Ok(bare_endpoint(network, ""))
    }

    fn join(&self, _: &mut Context<'_>, _: &Network, _: &Sandbox, _: &Endpoint) -> Result<()> {
        Ok(())
    }

    fn leave(&self, _: &mut Context<'_>, _: &Sandbox, _: &Endpoint) -> Result<()> {
        Ok(())
    }
}
