//! The `overlay` driver: the bridge driver's bridge, with a VXLAN device as one more port.
//!
//! ```text
//!   eth0 ── berth… ──┐                                                        ┌── berth… ── eth0
//!   eth0 ── berth… ──┴ bridge (gateway) ── vxlan ···· underlay ···· vxlan ── bridge (gateway)
//! ```
//!
//! Bridge and device are in the host's namespace: the gateway is the bridge's address, so that the firewall's chains give
//! endpoints their way out and their published ports as on a bridge network, and `ip` and `bridge` show what there is. (Docker
//! puts both into a namespace of their own and gives each container a second interface on `docker_gwbridge` for the rest.) All
//! hosts' bridges have the same gateway address; no neighbour entry leads to another host's, so each host answers for its own
//! endpoints and nobody else hears of it.
//!
//! The device learns nothing and has no entry for unknown or many receivers: what it was not told is dropped, ARP and ND are
//! answered from its neighbour entries ([`link::vxlan`](crate::link::vxlan)). Who tells it is [`overlay`](crate::overlay).

use std::io;

use nix::errno::Errno;

use super::{Assigned, Context, Driver, Ground, bridge::Bridge, tunnel};
use crate::{
    error::{Error, Result},
    ipam::Pool,
    link::{self, BridgePort, vxlan},
    model::{Endpoint, EndpointOptions, Network, OverlayOptions, Sandbox, SubnetOptions},
    names::stable_hash,
};

/// The least that IPv6 works with.
const MTU_LEAST: u32 = 1280;

#[derive(Debug)]
pub(super) struct Overlay {
    options: OverlayOptions,
    bridge: Bridge,
}

impl Overlay {
    pub(super) fn new(options: OverlayOptions) -> Self {
        let bridge = Bridge::told(options.bridge());
        Self { options, bridge }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::kernel(format!("{doing} VXLAN device {:?} (VNI {})", self.options.vxlan, self.options.vni))
    }

    /// Makes the device, or makes it anew when it is not what it should be.
    fn device(&self, context: &mut Context<'_>, config: &vxlan::Config, mtu: u32) -> Result<()> {
        let name = &self.options.vxlan;
        let socket = &mut context.kernel.route;
        if let Some(present) = link::find(socket, name).map_err(self.failed("looking up"))? {
            if present.kind != "vxlan" {
                let reason = format!("an interface of that name exists and is a {:?}", present.kind);
                return Err(Error::invalid("vxlan", name, reason));
            }
            if vxlan::config(socket, name).map_err(self.failed("looking at"))?.as_ref() == Some(config) {
                // The underlay's may be another now.
                return match present.mtu == mtu {
                    true => Ok(()),
                    false => link::set_mtu(socket, name, mtu).map_err(self.failed("setting the MTU of")),
                };
            }
            link::delete(socket, name).map_err(self.failed("replacing"))?;
        }
        let [_, _, _, a, b, c, d, e] = stable_hash(&[&config.local.to_string(), name]).to_be_bytes();
        match vxlan::create(socket, name, [0x06, a, b, c, d, e], mtu, config) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Err(Error::NoDriver { kind: "vxlan", feature: "VXLAN" })
            }
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                Err(Error::VniInUse { vni: config.vni, port: config.port })
            }
            made => made.map_err(self.failed("creating")),
        }
    }
}

impl Driver for Overlay {
    fn subnets(&self) -> &[SubnetOptions] {
        &self.options.subnets
    }

    fn shares_subnets(&self) -> bool {
        true
    }

    fn create_network(&self, context: &mut Context<'_>, network: &Network, pools: &[Pool]) -> Result<()> {
        let underlay = context.underlay.get()?;
        let encrypted = self.options.encrypted;
        let room = underlay.room(encrypted);
        let mtu = if self.options.mtu == 0 { room } else { self.options.mtu };
        if mtu > room || mtu < MTU_LEAST {
            let reason =
                format!("the underlay's interface has {}, which leaves 1280 to {room}", underlay.mtu);
            return Err(Error::invalid("mtu", mtu, reason));
        }
        // First what may be refused.
        let (local, link) = if encrypted {
            let socket = &mut context.kernel.route;
            (underlay.tunnel.into(), tunnel::ensure(socket, context.prefix, &underlay)?)
        } else {
            (underlay.address, 0)
        };
        let config = vxlan::Config { vni: self.options.vni, local, port: underlay.port, link };
        self.device(context, &config, mtu)?;
        let mut options = self.options.bridge();
        options.mtu = mtu;
        Bridge::told(options).create_network(context, network, pools)?;
        let socket = &mut context.kernel.route;
        let bridge = link::find(socket, &self.options.bridge).map_err(self.failed("connecting"))?;
        let bridge = bridge.ok_or_else(|| self.failed("connecting")(Errno::ENODEV.into()))?.index;
        let port = BridgePort { bridge, hairpin: false, isolated: false, learning: false, flood: true };
        link::enable_port(socket, &self.options.vxlan, &port).map_err(self.failed("connecting"))
    }

    fn delete_network(&self, context: &mut Context<'_>, network: &Network) -> Result<()> {
        let name = &self.options.vxlan;
        let socket = &mut context.kernel.route;
        let present = link::find(socket, name).map_err(self.failed("looking up"))?;
        // One of somebody else's stays.
        if present.is_some_and(|link| link.kind == "vxlan") {
            link::delete(socket, name).map_err(self.failed("deleting"))?;
        }
        self.bridge.delete_network(context, network)
    }

    fn survey<'a>(&self, context: &mut Context<'a>) -> Result<Ground<'a>> {
        self.bridge.survey(context)
    }

    fn create_endpoint(
        &self,
        ground: Ground<'_>,
        network: &Network,
        sandbox: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint> {
        self.bridge.create_endpoint(ground, network, sandbox, options, assigned)
    }

    fn join(
        &self,
        context: &mut Context<'_>,
        network: &Network,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        self.bridge.join(context, network, sandbox, endpoint)
    }

    fn leave(&self, context: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<()> {
        self.bridge.leave(context, sandbox, endpoint)
    }
}
