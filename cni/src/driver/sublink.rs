//! The `macvlan` and `ipvlan` drivers: an endpoint is an interface on top of one of the host's, born in the sandbox.
//!
//! ```text
//!   sandbox's namespace    host's namespace
//!   eth0 ───────┐
//!   eth0 ───────┴───────── parent (eth1, or eth1.100 made by us) ── the network outside
//! ```
//!
//! Nothing of it shows among the host's interfaces, and the host's firewall does not see it (but for ipvlan `l3s`): neither
//! published ports nor isolation apply. Host and endpoints of one parent don't reach each other; that is the kernel's way.
//!
//! A parent named `PARENT.VID` that is not there is made as an 802.1q interface of `PARENT`, and removed with the network.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::errno::Errno;

use super::{
    Assigned, Context, Driver, Ground, addressed_endpoint,
    inside::{configure, quiet_ipv6},
    limits, mac,
};
use crate::{
    definition::vlan_of,
    error::{Error, Result},
    ipam::Pool,
    link::{self, Link, SublinkSpec},
    model::{
        Endpoint, EndpointOptions, IpvlanMode, MacvlanMode, Network, ParentOptions, Sandbox, SubnetOptions,
    },
    names::stable_hash,
    netlink::{Messages, Socket},
    netns,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Macvlan(MacvlanMode),
    Ipvlan(IpvlanMode),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
        }
    }

    /// `IFLA_MACVLAN_MODE` and `IFLA_IPVLAN_MODE` (linux/if_link.h), as the kernel takes them: 4 bytes and 2.
    fn mode(self) -> Vec<u8> {
        match self {
            Self::Macvlan(mode) => {
                let mode: u32 = match mode {
                    MacvlanMode::Private => 1,
                    MacvlanMode::Vepa => 2,
                    MacvlanMode::Bridge => 4,
                    MacvlanMode::Passthru => 8,
                };
                mode.to_ne_bytes().to_vec()
            }
            Self::Ipvlan(mode) => {
                let mode: u16 = match mode {
                    IpvlanMode::L2 => 0,
                    IpvlanMode::L3 => 1,
                    IpvlanMode::L3s => 2,
                };
                mode.to_ne_bytes().to_vec()
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Sublink {
    kind: Kind,
    options: ParentOptions,
}

impl Sublink {
    pub(super) fn new(kind: Kind, options: ParentOptions) -> Self {
        Self { kind, options }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::kernel(format!("{doing} parent interface {:?}", self.options.interface))
    }

    fn parent(&self, socket: &mut Socket) -> Result<Link> {
        let found = link::find(socket, &self.options.interface).map_err(self.failed("looking up"))?;
        found.ok_or_else(|| Error::ParentMissing(self.options.interface.clone()))
    }

    /// Makes `PARENT.VID`; one that is there is as good.
    fn make_vlan(&self, socket: &mut Socket) -> Result<()> {
        let name = &self.options.interface;
        let (parent, id) = vlan_of(name).ok_or_else(|| Error::ParentMissing(name.clone()))?;
        let below = link::find(socket, parent).map_err(self.failed("looking below"))?;
        let below = below.ok_or_else(|| Error::ParentMissing(parent.to_owned()))?;
        match link::create_vlan(socket, name, below.index, id) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                return Err(Error::NoDriver { kind: "vlan", feature: "802.1q interfaces" });
            }
            done => done.map_err(self.failed("creating"))?,
        }
        let made = self.parent(socket)?;
        let mut messages = Messages::new();
        link::set_up(&mut messages, made.index);
        let replies = socket.exchange(messages).map_err(self.failed("setting up"))?;
        replies.iter().try_for_each(|reply| reply.accept(&[])).map_err(self.failed("setting up"))
    }

    /// Creates the interface in the sandbox, or finds it as an earlier attempt left it. Returns its index.
    fn connect(
        &self,
        host: &mut Socket,
        inside: &mut Socket,
        parent: &Link,
        netns: BorrowedFd<'_>,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<u32> {
        let action = format!("joining sandbox {:?} with {:?}", sandbox.id, endpoint.interface);
        let spec = SublinkSpec {
            kind: self.kind.name(),
            mode: &self.kind.mode(),
            name: &endpoint.interface,
            parent: parent.index,
            mtu: endpoint.mtu,
            mac: endpoint.mac.filter(|_| matches!(self.kind, Kind::Macvlan(_))),
        };
        match link::create_sublink(host, &spec, netns) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EEXIST) => {}
                Some(Errno::EOPNOTSUPP) => {
                    return Err(Error::NoDriver { kind: self.kind.name(), feature: self.kind.name() });
                }
                // Passthru has room for one; ipvlan and macvlan don't share a parent.
                Some(Errno::EINVAL | Errno::EBUSY) if link_is_busy(&self.kind) => {
                    return Err(Error::ParentBusy(self.options.interface.clone()));
                }
                _ => return Err(Error::kernel(action)(error)),
            },
        }
        match link::find(inside, &endpoint.interface).map_err(Error::kernel(action.clone()))? {
            Some(found) if self.is(&found, endpoint) => Ok(found.index),
            Some(_) => Err(Error::InterfaceTaken {
                interface: endpoint.interface.clone(),
                netns: sandbox.netns.clone(),
            }),
            None => Err(Error::kernel(action)(Errno::ENODEV.into())),
        }
    }

    /// Whether a link is the endpoint's.
    fn is(&self, link: &Link, endpoint: &Endpoint) -> bool {
        link.kind == self.kind.name() && endpoint.mac.is_some_and(|mac| link.mac == mac)
    }
}

/// `EINVAL` and `EBUSY` of a passthru parent that has its one interface already.
fn link_is_busy(kind: &Kind) -> bool {
    matches!(kind, Kind::Macvlan(MacvlanMode::Passthru) | Kind::Ipvlan(_))
}

impl Driver for Sublink {
    fn subnets(&self) -> &[SubnetOptions] {
        &self.options.subnets
    }

    fn create_network(&self, context: &mut Context<'_>, _: &Network, _: &[Pool]) -> Result<()> {
        let socket = &mut context.kernel.route;
        match self.parent(socket) {
            Err(Error::ParentMissing(_)) if self.options.made => self.make_vlan(socket)?,
            found => drop(found?),
        }
        // Asked for before anything needs it: the kernel may lack the driver.
        if link::has_kind(socket, self.kind.name()).map_err(self.failed("probing"))? {
            return Ok(());
        }
        Err(Error::NoDriver { kind: self.kind.name(), feature: self.kind.name() })
    }

    fn delete_network(&self, context: &mut Context<'_>, _: &Network) -> Result<()> {
        let socket = &mut context.kernel.route;
        let found = link::find(socket, &self.options.interface).map_err(self.failed("looking up"))?;
        match found {
            Some(found) if self.options.made && found.kind == "vlan" => {
                link::delete(socket, &self.options.interface).map_err(self.failed("deleting"))
            }
            _ => Ok(()),
        }
    }

    fn survey<'a>(&self, context: &mut Context<'a>) -> Result<Ground<'a>> {
        let parent = self.parent(&mut context.kernel.route)?;
        let mac = <[u8; 6]>::try_from(parent.mac.as_slice()).ok();
        let mtu = if self.options.mtu == 0 { parent.mtu } else { self.options.mtu };
        Ok(Ground { prefix: context.prefix, mtu, mac })
    }

    fn create_endpoint(
        &self,
        ground: Ground<'_>,
        network: &Network,
        sandbox: &Sandbox,
        options: &EndpointOptions,
        assigned: &[Assigned],
    ) -> Result<Endpoint> {
        if options.ports.iter().any(|port| port.host_port != 0) {
            let reason = format!("network {:?} is past the host's firewall: it publishes none", network.name);
            return Err(Error::invalid("ports", options.ports.len(), reason));
        }
        if let (Kind::Ipvlan(IpvlanMode::L3s), Some(rate)) = (self.kind, options.bandwidth.ingress) {
            let reason = "in mode l3s what comes in passes no queue; use mode l2 or l3, or a bridge network";
            return Err(Error::invalid("bandwidth", rate, reason));
        }
        let own = ground.mac;
        let mac = match (self.kind, options.mac) {
            // They show the parent's.
            (Kind::Ipvlan(_) | Kind::Macvlan(MacvlanMode::Passthru), Some(mac)) if own != Some(mac) => {
                let reason = format!("endpoints of network {:?} have their parent's", network.name);
                return Err(Error::invalid("mac", format!("{mac:02x?}"), reason));
            }
            (Kind::Ipvlan(_) | Kind::Macvlan(MacvlanMode::Passthru), _) => own,
            (Kind::Macvlan(_), wanted) => {
                let hash = stable_hash(&[&sandbox.id, &network.name]);
                Some(wanted.unwrap_or_else(|| mac(assigned, hash)))
            }
        };
        let mac = mac.ok_or_else(|| {
            Error::invalid("parent", &self.options.interface, "it is no Ethernet interface: it has no MAC")
        })?;
        Ok(Endpoint { mac: Some(mac), mtu: ground.mtu, ..addressed_endpoint(network, options, assigned) })
    }

    fn is_attached(&self, _: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<bool> {
        let netns = netns::open(&sandbox.netns)?;
        let action = format!("looking for {:?} of sandbox {:?}", endpoint.interface, sandbox.id);
        netns::within(&sandbox.netns, &netns, || {
            let found = Socket::route().and_then(|mut inside| link::find(&mut inside, &endpoint.interface));
            Ok(found.map_err(Error::kernel(action))?.is_some_and(|found| self.is(&found, endpoint)))
        })
    }

    fn join(
        &self,
        context: &mut Context<'_>,
        _: &Network,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        let netns = netns::open(&sandbox.netns)?;
        let socket = &mut context.kernel.route;
        let parent = self.parent(socket)?;
        let action = format!("configuring {:?} of sandbox {:?}", endpoint.interface, sandbox.id);
        netns::within(&sandbox.netns, &netns, || {
            quiet_ipv6(endpoint.addresses.iter().any(ipnetwork::IpNetwork::is_ipv6))?;
            let mut inside = Socket::route().map_err(Error::kernel(action.clone()))?;
            let index = self.connect(socket, &mut inside, &parent, netns.as_fd(), sandbox, endpoint)?;
            limits::inside(&mut inside, index, endpoint)?;
            limits::intermediate(&mut inside, index, endpoint)?;
            // Without layer 2 there are no neighbours: all is on the link.
            let by_gateway = !matches!(self.kind, Kind::Ipvlan(IpvlanMode::L3 | IpvlanMode::L3s));
            configure(&mut inside, index, endpoint, by_gateway).map_err(Error::kernel(action))
        })
    }

    fn leave(&self, _: &mut Context<'_>, sandbox: &Sandbox, endpoint: &Endpoint) -> Result<()> {
        // A namespace that is gone has taken the interface along.
        let Ok(netns) = netns::open(&sandbox.netns) else { return Ok(()) };
        let action = format!("deleting {:?} of sandbox {:?}", endpoint.interface, sandbox.id);
        let left = netns::within(&sandbox.netns, &netns, || {
            let remove = || {
                let mut inside = Socket::route()?;
                limits::remove_intermediate(&mut inside, endpoint)?;
                match link::find(&mut inside, &endpoint.interface)? {
                    Some(found) if self.is(&found, endpoint) => {
                        link::delete(&mut inside, &endpoint.interface)
                    }
                    _ => Ok(()),
                }
            };
            remove().map_err(Error::kernel(action))
        });
        match left {
            // A plain file where a namespace was pinned.
            Err(Error::Netns { source, .. }) if source.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(()),
            left => left,
        }
    }

    /// The host's collector does not see these interfaces, and an address must not be given out while one has it.
    fn delete_endpoint(
        &self,
        context: &mut Context<'_>,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        self.leave(context, sandbox, endpoint)
    }
}
