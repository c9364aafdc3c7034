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

use crate::controller::Flow;
use crate::netlink::{self, Messages, Socket, attribute, flags, native_u32};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
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

/// Creates a bridge; one that is there is taken as it is.
pub(crate) fn create_bridge(socket: &mut Socket, name: &str, mac: [u8; 6], mtu: u32) -> io::Result<()> {
    let mut message = named(name);
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, CREATE, &message);
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[Errno::EEXIST]))
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

/// Brings a port of a bridge into service: no addresses of its own (it would take a link-local one and announce it), hairpin
/// (a frame may leave where it came from: a pod that reaches itself over a host port), a port of `bridge`, up.
pub(crate) fn enable_port(socket: &mut Socket, name: &str, bridge: u32) -> io::Result<()> {
    let mut silent = named(name);
    silent.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    let mut port = named(name);
    port.attributes.push(LinkAttribute::Controller(bridge));
    let mut hairpin = named(name);
    up(&mut hairpin);
    hairpin.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]));
    let mut messages = Messages::new();
    messages.push_typed(NEWLINK, 0, &silent);
    messages.push_typed(NEWLINK, 0, &port);
    messages.push_typed(NEWLINK, 0, &hairpin);
    let replies = socket.exchange(messages)?;
    // Without IPv6 there is no address generation to turn off.
    replies[0].accept(&[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EINVAL])?;
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

/// Adds a default route.
pub(crate) fn add_default_route(messages: &mut Messages, index: u32, gateway: IpAddr) {
    let mut message = RouteMessage::default();
    message.header.address_family =
        if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    message.attributes.push(RouteAttribute::Oif(index));
    messages.push_typed(NEWROUTE, CREATE, &message);
}

/// The MTU of the interface the best IPv4 or else IPv6 default route leaves by.
pub(crate) fn mtu_out(socket: &mut Socket) -> io::Result<Option<u32>> {
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
            return Ok(Some(link.mtu));
        }
    }
    Ok(None)
}
