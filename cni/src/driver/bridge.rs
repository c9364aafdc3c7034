//! The `bridge` driver: one Linux bridge a network, one veth pair an endpoint.
//!
//! ```text
//!   sandbox's namespace          host's namespace
//!   eth0 (address, routes) ───── berth0a1b2c3d4e ──┐
//!   eth0 ─────────────────────── berth…            ├── bridge (gateway addresses) ── forwarding, masquerade
//! ```
//!
//! The host's interface name is derived from sandbox and network: a retry finds what the first attempt left, and reconciliation
//! knows whose a link is without asking.

use std::{io, os::fd::AsFd};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::{
    Assigned, Context, Driver, Ground, addressed_endpoint,
    inside::{configure, quiet_ipv6},
    limits, mac,
};
use crate::{
    error::{Error, Result},
    ipam::Pool,
    link::{self, BridgePort, Link, VethPair},
    model::{BridgeOptions, Endpoint, EndpointOptions, Network, Sandbox, SubnetOptions},
    names::{INTERFACE_NAME_MAX, stable_hash},
    netlink::{Messages, Socket},
    netns, sysctl,
};

const DEFAULT_MTU: u32 = 1500;

#[derive(Debug)]
pub(super) struct Bridge {
    options: BridgeOptions,
    /// Whether it learns where MACs are, as bridges do.
    learning: bool,
}

impl Bridge {
    pub(super) fn new(options: BridgeOptions) -> Self {
        Self { options, learning: true }
    }

    /// One that is told each endpoint's MAC: an endpoint gets nothing that is not for it, and can't pretend to be another.
    pub(super) fn told(options: BridgeOptions) -> Self {
        Self { options, learning: false }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::kernel(format!("{doing} bridge {:?}", self.options.bridge))
    }

    fn find(&self, socket: &mut Socket) -> Result<Option<Link>> {
        link::find(socket, &self.options.bridge).map_err(self.failed("looking up"))
    }

    fn mtu(&self, socket: &mut Socket) -> Result<u32> {
        match self.options.mtu {
            0 => Ok(link::mtu_out(socket).map_err(self.failed("finding the MTU of"))?.unwrap_or(DEFAULT_MTU)),
            mtu => Ok(mtu),
        }
    }

    /// The bridge's MAC: fixed, or it would follow its ports as they come and go; ours, so that we know what we made.
    fn mac(&self, prefix: &str) -> [u8; 6] {
        let [_, _, _, a, b, c, d, e] = stable_hash(&[prefix, &self.options.bridge]).to_be_bytes();
        [0x02, a, b, c, d, e]
    }

    /// Parameters of the bridge: no router advertisements (a pod could send one), 127.0.0.1 as a source for host ports, and IPv6
    /// where the network has it: hosts may have turned that off for all interfaces to come.
    fn parameters(&self) -> Result<()> {
        let bridge = &self.options.bridge;
        if self.options.subnets.iter().any(|subnet| subnet.subnet.is_ipv6()) {
            sysctl::set(&format!("ipv6/conf/{bridge}/disable_ipv6"), "0")?;
        }
        sysctl::set(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
        sysctl::set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
        let family = |v4: bool| self.options.subnets.iter().any(|subnet| subnet.subnet.is_ipv4() == v4);
        sysctl::enable_forwarding(family(true), family(false))
    }
}

impl Driver for Bridge {
    fn subnets(&self) -> &[SubnetOptions] {
        &self.options.subnets
    }

    fn create_network(&self, context: &mut Context<'_>, _: &Network, pools: &[Pool]) -> Result<()> {
        let socket = &mut context.kernel.route;
        let bridge = match self.find(socket)? {
            Some(bridge) => bridge,
            None => {
                let mtu = self.mtu(socket)?;
                let mac = self.mac(context.prefix);
                link::create_bridge(socket, &self.options.bridge, mac, mtu)
                    .map_err(self.failed("creating"))?;
                self.find(socket)?.ok_or_else(|| self.failed("creating")(Errno::ENODEV.into()))?
            }
        };
        if bridge.kind != "bridge" {
            let reason = format!("an interface of that name exists and is a {:?}", bridge.kind);
            return Err(Error::invalid("bridge", &self.options.bridge, reason));
        }
        // Ours keeps up with what is asked for; what the route out had when it was made is not asked for again.
        let wanted = self.options.mtu;
        if wanted != 0 && bridge.mtu != wanted && bridge.mac == self.mac(context.prefix) {
            link::set_mtu(socket, &self.options.bridge, wanted).map_err(self.failed("setting the MTU of"))?;
        }
        self.parameters()?;
        let mut messages = Messages::new();
        for pool in pools {
            link::add_address(&mut messages, bridge.index, gateway(pool)?);
        }
        link::set_up(&mut messages, bridge.index);
        let replies = socket.exchange(messages).map_err(self.failed("configuring"))?;
        let configured = replies.iter().try_for_each(|reply| reply.accept(&[Errno::EEXIST]));
        configured.map_err(self.failed("configuring"))
    }

    fn retire_pools(&self, context: &mut Context<'_>, _: &Network, pools: &[Pool]) -> Result<()> {
        let socket = &mut context.kernel.route;
        let Some(bridge) = self.find(socket)? else { return Ok(()) };
        let mut messages = Messages::new();
        for pool in pools {
            link::delete_address(&mut messages, bridge.index, gateway(pool)?);
        }
        let replies = socket.exchange(messages).map_err(self.failed("taking addresses from"))?;
        let taken = replies.iter().try_for_each(|reply| reply.accept(&[Errno::EADDRNOTAVAIL, Errno::ENODEV]));
        taken.map_err(self.failed("taking addresses from"))
    }

    fn delete_network(&self, context: &mut Context<'_>, _: &Network) -> Result<()> {
        let mac = self.mac(context.prefix);
        let socket = &mut context.kernel.route;
        match self.find(socket)? {
            // An interface that was there before us stays.
            Some(bridge) if bridge.kind == "bridge" && bridge.mac == mac => {
                link::delete(socket, &self.options.bridge).map_err(self.failed("deleting"))
            }
            _ => Ok(()),
        }
    }

    fn survey<'a>(&self, context: &mut Context<'a>) -> Result<Ground<'a>> {
        let bridge = self.find(&mut context.kernel.route)?;
        let bridge = bridge.ok_or_else(|| self.failed("looking up")(Errno::ENODEV.into()))?;
        Ok(Ground { prefix: context.prefix, mtu: bridge.mtu, mac: None })
    }

    fn create_endpoint(
        &self,
        ground: Ground<'_>,
        network: &Network,
        sandbox: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint> {
        let hash = stable_hash(&[&sandbox.id, &network.name]);
        let mut host_interface = format!("{}{hash:016x}", ground.prefix);
        host_interface.truncate(INTERFACE_NAME_MAX);
        Ok(Endpoint {
            host_interface: Some(host_interface),
            mac: Some(options.mac.unwrap_or_else(|| mac(assigned, hash))),
            mtu: ground.mtu,
            ..addressed_endpoint(network, options, assigned)
        })
    }

    fn join(
        &self,
        context: &mut Context<'_>,
        network: &Network,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        let (Some(host_name), Some(mac)) = (endpoint.host_interface.as_deref(), endpoint.mac) else {
            return Ok(());
        };
        let netns = netns::open(&sandbox.netns)?;
        let socket = &mut context.kernel.route;
        let bridge = self.find(socket)?.ok_or_else(|| self.failed("looking up")(Errno::ENODEV.into()))?;
        let pair = VethPair {
            host_name,
            peer_name: &endpoint.interface,
            peer_mac: mac,
            mtu: bridge.mtu,
            bridge: bridge.index,
        };
        let action =
            format!("joining sandbox {:?} to network {:?} with {host_name}", sandbox.id, network.name);
        netns::within(&sandbox.netns, &netns, || {
            let has_v6 = endpoint.addresses.iter().any(IpNetwork::is_ipv6);
            quiet_ipv6(has_v6)?;
            let mut inside = Socket::route().map_err(Error::kernel(action.clone()))?;
            let index = connect(socket, &mut inside, &pair, netns.as_fd(), sandbox, &action)?;
            let port = BridgePort {
                bridge: bridge.index,
                hairpin: self.options.hairpin,
                isolated: !self.options.inter_container,
                learning: self.learning,
                flood: self.learning,
            };
            if !self.learning {
                let outer = link::find(socket, host_name).map_err(Error::kernel(action.clone()))?;
                let outer = outer.ok_or_else(|| Error::kernel(action.clone())(Errno::ENODEV.into()))?;
                link::vxlan::add_port_entry(socket, outer.index, mac)
                    .map_err(Error::kernel(action.clone()))?;
            }
            link::enable_port(socket, host_name, &port).map_err(Error::kernel(action.clone()))?;
            limits::outside(socket, endpoint)?;
            limits::inside(&mut inside, index, endpoint)?;
            configure(&mut inside, index, endpoint, true).map_err(Error::kernel(action))
        })
    }

    fn leave(&self, context: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<()> {
        let Some(name) = endpoint.host_interface.as_deref() else { return Ok(()) };
        let action = format!("deleting {name} of sandbox {:?}", sandbox.id);
        link::delete(&mut context.kernel.route, name).map_err(Error::kernel(action))
    }
}

/// The bridge's own address in a pool.
fn gateway(pool: &Pool) -> Result<IpNetwork> {
    IpNetwork::new(pool.gateway, pool.subnet.prefix())
        .map_err(|error| Error::invalid("gateway", pool.gateway, error.to_string()))
}

/// Creates the pair, or finds it as an earlier attempt left it. Returns the peer's index.
fn connect(
    host: &mut Socket,
    inside: &mut Socket,
    pair: &VethPair<'_>,
    netns: std::os::fd::BorrowedFd<'_>,
    sandbox: &Sandbox,
    action: &str,
) -> Result<u32> {
    let failed = || Error::kernel(action.to_owned());
    let created = link::create_veth(host, pair, netns);
    if let Err(error) = created {
        if error.raw_os_error() != Some(Errno::EEXIST as i32) {
            return Err(failed()(error));
        }
        let outer = link::find(host, pair.host_name).map_err(failed())?;
        let inner = link::find(inside, pair.peer_name).map_err(failed())?;
        match (outer, inner) {
            (Some(outer), Some(inner)) if inner.peer == Some(outer.index) && inner.mac == pair.peer_mac => {
                return Ok(inner.index);
            }
            // The interface in the sandbox is somebody else's.
            (_, Some(_)) => {
                let interface = pair.peer_name.to_owned();
                return Err(Error::InterfaceTaken { interface, netns: sandbox.netns.clone() });
            }
            // Our host's side with its peer elsewhere: left by an earlier sandbox of this id.
            (_, None) => link::delete(host, pair.host_name).map_err(failed())?,
        }
        link::create_veth(host, pair, netns).map_err(failed())?;
    }
    let peer = link::find(inside, pair.peer_name).map_err(failed())?;
    peer.map(|peer| peer.index).ok_or_else(|| failed()(Errno::ENODEV.into()))
}
