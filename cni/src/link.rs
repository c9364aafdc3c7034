//! rtnetlink requests of the drivers: links, addresses, routes.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;

use crate::model::Flow;
use crate::netlink::{self, Messages, Socket, attribute, flags, native_u32};

/// VXLAN devices, and what they know of other hosts.
pub(crate) mod vxlan;
/// WireGuard devices, and who they talk to.
pub(crate) mod wireguard;

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_INFO_KIND: u16 = 1;
const LINK_HEADER: usize = 16;

const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const ROUTE_HEADER: usize = 12;

/// Creates only: a link of that name is an error.
const CREATE: u16 = flags::CREATE | flags::EXCL;

/// What we look at of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// Index of the bridge it is a port of.
    pub(crate) master: Option<u32>,
    /// For a veth, the index of its peer in the peer's namespace.
    pub(crate) peer: Option<u32>,
}

impl Link {
    fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = payload.get(LINK_HEADER..)?;
        let number = |kind| attribute(attributes, kind).and_then(native_u32);
        let info = attribute(attributes, IFLA_LINKINFO).unwrap_or_default();
        Some(Self {
            index: native_u32(&payload[4..])?,
            name: netlink::name(attribute(attributes, IFLA_IFNAME)?),
            kind: attribute(info, IFLA_INFO_KIND).map(netlink::name).unwrap_or_default(),
            mac: attribute(attributes, IFLA_ADDRESS).unwrap_or_default().to_vec(),
            mtu: number(IFLA_MTU).unwrap_or_default(),
            master: number(IFLA_MASTER),
            peer: number(IFLA_LINK),
        })
    }
}

/// Looks a link up by name.
pub(crate) fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let found = socket.call(GETLINK, 0, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, name);
    });
    match found {
        Ok(payloads) => Ok(payloads.first().and_then(|payload| Link::parse(payload))),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links.
pub(crate) fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let payloads = socket.dump(GETLINK, |out| {
        out.raw(&[0; LINK_HEADER]);
    })?;
    Ok(payloads.iter().filter_map(|payload| Link::parse(payload)).collect())
}

/// Counters of all links by name: what each received, and what it sent.
pub(crate) fn counters(socket: &mut Socket) -> io::Result<HashMap<String, (Flow, Flow)>> {
    let payloads = socket.dump(GETLINK, |out| {
        out.raw(&[0; LINK_HEADER]);
    })?;
    Ok(payloads.iter().filter_map(|payload| counters_of(payload.get(LINK_HEADER..)?)).collect())
}

/// `struct rtnl_link_stats64`: packets, bytes, errors and drops, each received then sent, and more that is not looked at.
fn counters_of(attributes: &[u8]) -> Option<(String, (Flow, Flow))> {
    let name = netlink::name(attribute(attributes, IFLA_IFNAME)?);
    let counters = attribute(attributes, IFLA_STATS64)?;
    let number = |index: usize| {
        let bytes = counters.get(index * 8..index * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let flow = |direction: usize| {
        Some(Flow {
            packets: number(direction)?,
            bytes: number(2 + direction)?,
            errors: number(4 + direction)?,
            dropped: number(6 + direction)?,
        })
    };
    Some((name, (flow(0)?, flow(1)?)))
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

/// Creates a bridge; one that is there is taken as it is, but for the MTU. That is set when the bridge is there already: one that
/// it is born with holds until its ports come and go, and with the last of them the bridge would fall back to 1500.
pub(crate) fn create_bridge(socket: &mut Socket, name: &str, mac: [u8; 6], mtu: u32) -> io::Result<()> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, CREATE, &message);
    push_mtu(&mut messages, name, mtu);
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[Errno::EEXIST]))
}

fn push_mtu(messages: &mut Messages, name: &str, mtu: u32) {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    messages.push_typed(NEWLINK, 0, &message);
}

/// Gives a link another MTU.
pub(crate) fn set_mtu(socket: &mut Socket, name: &str, mtu: u32) -> io::Result<()> {
    let mut messages = Messages::new();
    push_mtu(&mut messages, name, mtu);
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[]))
}

/// Sets a link up; loopback too.
pub(crate) fn set_up(messages: &mut Messages, index: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    up(&mut message);
    messages.push_typed(NEWLINK, 0, &message);
}

/// What a veth pair is made of.
#[derive(Debug)]
pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) bridge: u32,
}

/// Creates a veth pair: this side a port of the bridge and still down, the peer in `netns` from the start (moving an interface
/// to another namespace waits for the network stack to quiesce, some 20 ms). Neither can be up before the other exists.
pub(crate) fn create_veth(socket: &mut Socket, pair: &VethPair<'_>, netns: BorrowedFd<'_>) -> io::Result<()> {
    let mut peer = named(pair.peer_name);
    peer.attributes.push(LinkAttribute::Address(pair.peer_mac.to_vec()));
    peer.attributes.push(LinkAttribute::Mtu(pair.mtu));
    peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut message = named(pair.host_name);
    message.attributes.push(LinkAttribute::Mtu(pair.mtu));
    message.attributes.push(LinkAttribute::Controller(pair.bridge));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, CREATE, &message);
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[]))
}

/// How a port of a bridge is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BridgePort {
    /// Index of the bridge.
    pub(crate) bridge: u32,
    /// A frame may leave where it came from: a pod that reaches itself over a host port.
    pub(crate) hairpin: bool,
    /// Frames don't go to other isolated ports.
    pub(crate) isolated: bool,
    /// Whether MACs behind it are learned.
    pub(crate) learning: bool,
    /// Whether it gets frames to MACs that nobody knows. Else it gets broadcast, multicast, and what an entry of the bridge says
    /// ([`vxlan::add_port_entry`]).
    pub(crate) flood: bool,
}

/// Without IPv6 there is no address generation to turn off.
const NO_IPV6: [Errno; 3] = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EINVAL];

/// Has an interface take no address by itself.
fn silent(name: &str) -> LinkMessage {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    message
}

/// Brings a port of a bridge into service: no addresses of its own (it would take a link-local one and announce it), up.
pub(crate) fn enable_port(socket: &mut Socket, name: &str, wanted: &BridgePort) -> io::Result<()> {
    let mut port = named(name);
    port.attributes.push(LinkAttribute::Controller(wanted.bridge));
    let mut hairpin = named(name);
    up(&mut hairpin);
    hairpin.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(wanted.hairpin),
            InfoBridgePort::Isolated(wanted.isolated),
            InfoBridgePort::Learning(wanted.learning),
            InfoBridgePort::UnicastFlood(wanted.flood),
        ])),
    ]));
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, 0, &silent(name));
    messages.push_typed(NEWLINK, 0, &port);
    messages.push_typed(NEWLINK, 0, &hairpin);
    let replies = socket.exchange(messages)?;
    replies[0].accept(&NO_IPV6)?;
    replies.iter().skip(1).try_for_each(|reply| reply.accept(&[]))
}

/// Deletes a link by name; one that is gone is fine. Waits for the network stack, some 20 ms.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut messages = Messages::new();
    messages.push_typed(DELLINK, 0, &named(name));
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[Errno::ENODEV]))
}

/// Adds an address. IPv6 addresses skip duplicate address detection: they come from a pool that knows.
pub(crate) fn add_address(messages: &mut Messages, index: u32, address: IpNetwork) {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.attributes.push(AddressAttribute::Local(address.ip()));
    message.attributes.push(AddressAttribute::Address(address.ip()));
    match address {
        IpNetwork::V4(address) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
        }
        IpNetwork::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    messages.push_typed(NEWADDR, CREATE, &message);
}

/// Takes an address of this very prefix length away.
pub(crate) fn delete_address(messages: &mut Messages, index: u32, address: IpNetwork) {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(AddressAttribute::Local(address.ip()));
    message.attributes.push(AddressAttribute::Address(address.ip()));
    messages.push_typed(DELADDR, 0, &message);
}

/// Addresses of a link with their prefix lengths.
pub(crate) fn addresses(socket: &mut Socket, index: u32) -> io::Result<Vec<IpNetwork>> {
    const GETADDR: u16 = 22;
    const HEADER: usize = 8;
    const IFA_ADDRESS: u16 = 1;
    let found = socket.dump(GETADDR, |out| {
        out.raw(&[0; HEADER]);
    })?;
    let of_link = found.iter().filter(|entry| entry.get(4..).and_then(native_u32) == Some(index));
    let parse = |entry: &Vec<u8>| {
        let address = attribute(entry.get(HEADER..)?, IFA_ADDRESS)?;
        let address = match address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        };
        IpNetwork::new(address, *entry.get(1)?).ok()
    };
    Ok(of_link.filter_map(parse).collect())
}

/// All addresses of the namespace with their links' indices and scopes.
pub(crate) fn all_addresses(socket: &mut Socket) -> io::Result<Vec<(u32, IpNetwork, u8)>> {
    const GETADDR: u16 = 22;
    const HEADER: usize = 8;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let found = socket.dump(GETADDR, |out| {
        out.raw(&[0; HEADER]);
    })?;
    let parse = |entry: &Vec<u8>| {
        let attributes = entry.get(HEADER..)?;
        let address = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
        let address = match address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        };
        let index = entry.get(4..).and_then(native_u32)?;
        Some((index, IpNetwork::new(address, *entry.get(1)?).ok()?, *entry.get(3)?))
    };
    Ok(found.iter().filter_map(parse).collect())
}

/// Adds a default route by a gateway; without one the family's whole world is on the link.
pub(crate) fn add_default_route(
    messages: &mut Messages,
    index: u32,
    v4: bool,
    gateway: Option<IpAddr>,
    metric: u32,
) {
    let mut message = RouteMessage::default();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = if gateway.is_some() || !v4 { RouteScope::Universe } else { RouteScope::Link };
    message.header.kind = RouteType::Unicast;
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    message.attributes.push(RouteAttribute::Priority(metric));
    message.attributes.push(RouteAttribute::Oif(index));
    messages.push_typed(NEWROUTE, CREATE, &message);
}

/// Destinations of the main table's routes, both families, without default routes.
pub(crate) fn routes(socket: &mut Socket) -> io::Result<Vec<IpNetwork>> {
    const RTA_DST: u16 = 1;
    let mut found = Vec::new();
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6].into_iter().flat_map(u8::try_from) {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        let routes = socket.dump(GETROUTE, |out| {
            out.raw(&header);
        })?;
        let main = routes.iter().filter(|route| route.len() >= ROUTE_HEADER && route[4] == 254);
        found.extend(main.filter_map(|route| {
            let destination = attribute(&route[ROUTE_HEADER..], RTA_DST)?;
            let address = match destination.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(destination).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(destination).ok()?),
            };
            IpNetwork::new(address, route[1]).ok()
        }));
    }
    Ok(found)
}

/// The MTU of the interface the best IPv4 or else IPv6 default route leaves by.
pub(crate) fn mtu_out(socket: &mut Socket) -> io::Result<Option<u32>> {
    Ok(link_out(socket)?.map(|link| link.mtu))
}

/// The interface the best IPv4 or else IPv6 default route leaves by.
pub(crate) fn link_out(socket: &mut Socket) -> io::Result<Option<Link>> {
    let links = list(socket)?;
    for family in [u8::try_from(nix::libc::AF_INET), u8::try_from(nix::libc::AF_INET6)].into_iter().flatten()
    {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        let routes = socket.dump(GETROUTE, |out| {
            out.raw(&header);
        })?;
        let best = routes
            .iter()
            // A default route: the destination has no length, it stands in the main table (254), and is unicast (1).
            .filter(|route| route.len() >= ROUTE_HEADER && route[1] == 0 && route[4] == 254 && route[7] == 1)
            .filter_map(|route| {
                let oif = attribute(&route[ROUTE_HEADER..], RTA_OIF).and_then(native_u32)?;
                let metric =
                    attribute(&route[ROUTE_HEADER..], RTA_PRIORITY).and_then(native_u32).unwrap_or_default();
                Some((metric, oif))
            })
            .min();
        let link = best.and_then(|(_, oif)| links.iter().find(|link| link.index == oif));
        if let Some(link) = link {
            return Ok(Some(link.clone()));
        }
    }
    Ok(None)
}

// === Links on top of others ===

const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_DATA: u16 = 2;
/// `IFLA_MACVLAN_MODE` and `IFLA_IPVLAN_MODE` are both the first.
const SUBLINK_MODE: u16 = 1;
const IFLA_VLAN_ID: u16 = 1;

/// What a macvlan or ipvlan is made of.
#[derive(Debug)]
pub(crate) struct SublinkSpec<'a> {
    pub(crate) kind: &'static str,
    pub(crate) mode: &'a [u8],
    pub(crate) name: &'a str,
    /// Index of the parent, in the host's namespace.
    pub(crate) parent: u32,
    pub(crate) mtu: u32,
    /// `None`: the kernel's choice.
    pub(crate) mac: Option<[u8; 6]>,
}

/// Creates an interface on top of a parent, in `netns` from the start and still down.
pub(crate) fn create_sublink(
    socket: &mut Socket,
    spec: &SublinkSpec<'_>,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    let fill = |out: &mut netlink::Attributes| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, spec.name);
        out.put(IFLA_LINK, &spec.parent.to_ne_bytes()).put(IFLA_MTU, &spec.mtu.to_ne_bytes());
        out.put(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        if let Some(mac) = spec.mac {
            out.put(IFLA_ADDRESS, &mac);
        }
        out.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, spec.kind).nest(IFLA_INFO_DATA, |data| {
                data.put(SUBLINK_MODE, spec.mode);
            });
        });
    };
    socket.call(NEWLINK, CREATE | flags::ACK, fill).map(drop)
}

/// Creates an intermediate device, which sends on what is led through it; up, and without addresses of its own.
pub(crate) fn create_ifb(socket: &mut Socket, name: &str, mtu: u32) -> io::Result<()> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    let mut enable = named(name);
    up(&mut enable);
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, CREATE, &message);
    messages.push_typed(NEWLINK, 0, &silent(name));
    messages.push_typed(NEWLINK, 0, &enable);
    let replies = socket.exchange(messages)?;
    let [made, silenced, enabled] = &replies[..] else { return Err(Errno::EIO.into()) };
    made.accept(&[Errno::EEXIST])?;
    silenced.accept(&NO_IPV6)?;
    enabled.accept(&[])
}

/// Creates an 802.1q interface; one of that name is taken as it is.
pub(crate) fn create_vlan(socket: &mut Socket, name: &str, parent: u32, id: u16) -> io::Result<()> {
    let created = socket.call(NEWLINK, CREATE | flags::ACK, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, name).put(IFLA_LINK, &parent.to_ne_bytes());
        out.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vlan").nest(IFLA_INFO_DATA, |data| {
                data.put(IFLA_VLAN_ID, &id.to_ne_bytes());
            });
        });
    });
    match created {
        Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
        created => created.map(drop),
    }
}

/// Whether the kernel can make links of a kind that stand on a parent: asked to make one on a parent that can't be, it fails
/// with another error than that it does not know the kind.
pub(crate) fn has_kind(socket: &mut Socket, kind: &str) -> io::Result<bool> {
    let asked = socket.call(NEWLINK, CREATE | flags::ACK, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, "berth-probe");
        out.put(IFLA_LINK, &u32::from(u16::MAX).to_ne_bytes());
        out.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, kind);
        });
    });
    match asked {
        Ok(_) => delete(socket, "berth-probe").map(|()| true),
        Err(error) => Ok(error.raw_os_error() != Some(Errno::EOPNOTSUPP as i32)),
    }
}
