//! The `none` driver: loopback and nothing else.

use super::{Assigned, Context, Driver, Ground, bare_endpoint};
use crate::{
    error::{Error, Result},
    ipam::Pool,
    link,
    model::{Endpoint, EndpointOptions, Network, Sandbox},
    netlink::{Messages, Socket},
    netns,
};

#[derive(Debug)]
pub(super) struct None;

impl Driver for None {
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
        _: &EndpointOptions,
        _: &[Assigned],
    ) -> Result<Endpoint> {
        Ok(bare_endpoint(network, "lo"))
    }

    fn join(&self, _: &mut Context<'_>, _: &Network, sandbox: &Sandbox, _: &Endpoint) -> Result<()> {
        let file = netns::open(&sandbox.netns)?;
        netns::within(&sandbox.netns, &file, || {
            let action = format!("setting lo up in {}", sandbox.netns.display());
            let set = || {
                let mut messages = Messages::new();
                link::set_up(&mut messages, super::inside::LOOPBACK);
                Socket::route()?.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[]))
            };
            set().map_err(Error::kernel(action))
        })
    }

    fn leave(&self, _: &mut Context<'_>, _: &Sandbox, _: &Endpoint) -> Result<()> {
        Ok(())
    }
}
