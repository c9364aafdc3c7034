//! The `addresses` driver: leases and nothing else, for whoever makes interfaces himself.

use super::{Assigned, Context, Driver, Ground, addressed_endpoint};
use crate::{
    error::Result,
    ipam::Pool,
    model::{Endpoint, EndpointOptions, Network, Sandbox, SubnetOptions},
};

#[derive(Debug)]
pub(super) struct Addresses {
    subnets: Vec<SubnetOptions>,
}

impl Addresses {
    pub(super) fn new(subnets: Vec<SubnetOptions>) -> Self {
        Self { subnets }
    }
}

impl Driver for Addresses {
    fn subnets(&self) -> &[SubnetOptions] {
        &self.subnets
    }

    fn create_network(&self, _: &mut Context<'_>, _: &Network, _: &[Pool]) -> Result<()> {
        Ok(())
    }

    fn delete_network(&self, _: &mut Context<'_>, _: &Network) -> Result<()> {
        Ok(())
    }

    fn create_endpoint(
        &self,
        _: Ground<'_>,
        network: &Network,
        _: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint> {
        Ok(addressed_endpoint(network, options, assigned))
    }

    fn join(&self, _: &mut Context<'_>, _: &Network, _: &Sandbox, _: &Endpoint) -> Result<()> {
        Ok(())
    }

    fn leave(&self, _: &mut Context<'_>, _: &Sandbox, _: &Endpoint) -> Result<()> {
        Ok(())
    }
}
