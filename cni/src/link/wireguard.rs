//! Generic netlink requests for WireGuard devices (`linux/wireguard.h`): the device's key and port, and its peers.
//!
//! The private key is made here, handed to the kernel and forgotten: it is on no disk, and nothing but the kernel has it. The
//! public key is what the kernel makes of it.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use super::{CREATE, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, LINK_HEADER, NEWLINK};
use crate::netlink::{Attributes, Socket, attribute, attributes, flags};

/// The family that knows the others (`linux/genetlink.h`).
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const GENERIC_HEADER: usize = 4;

const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;

/// Peers of one message: an attribute holds 64 KiB, a peer some 150 bytes.
const BATCH: usize = 64;

/// A Curve25519 key as it is on the wire.
pub(crate) type Key = [u8; 32];

/// Another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Where its packets go to.
    pub(crate) endpoint: SocketAddr,
    /// The only address that it may send from, and that is sent to it.
    pub(crate) address: Ipv6Addr,
}

/// A device as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// `None`: it has no key yet.
    pub(crate) public_key: Option<Key>,
    pub(crate) port: u16,
    pub(crate) peers: BTreeMap<Key, Option<Peer>>,
}

/// Makes a device, down and without a key.
pub(crate) fn create(socket: &mut Socket, name: &str, mtu: u32) -> io::Result<()> {
    let made = socket.call(NEWLINK, CREATE | flags::ACK, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, name).put(IFLA_MTU, &mtu.to_ne_bytes());
        out.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "wireguard");
        });
    });
    made.map(drop)
}

/// A socket to the kernel's WireGuard.
#[derive(Debug)]
pub(crate) struct Wireguard {
    socket: Socket,
    family: u16,
}

impl Wireguard {
    /// Fails with `ENOENT` on a kernel without WireGuard.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::generic()?;
        let found = socket.call(CONTROL, flags::ACK, |out| {
            out.raw(&[CTRL_CMD_GETFAMILY, 1, 0, 0]).text(CTRL_ATTR_FAMILY_NAME, "wireguard");
        })?;
        let id = found
            .first()
            .and_then(|payload| attribute(payload.get(GENERIC_HEADER..)?, CTRL_ATTR_FAMILY_ID))
            .and_then(|id| Some(u16::from_ne_bytes(id.try_into().ok()?)));
        let family = id.ok_or_else(|| io::Error::other("the kernel tells no number for WireGuard"))?;
        Ok(Self { socket, family })
    }

    /// What a device is.
    pub(crate) fn device(&mut self, name: &str) -> io::Result<Device> {
        // Peers come in as many messages as they need.
        let messages = self.socket.dump(self.family, |out| {
            out.raw(&[WG_CMD_GET_DEVICE, 1, 0, 0]).text(WGDEVICE_A_IFNAME, name);
        })?;
        let mut device = Device::default();
        for message in &messages {
            read(&mut device, message.get(GENERIC_HEADER..).unwrap_or_default());
        }
        Ok(device)
    }

    /// Gives a device a port, and a new key if it is to have one.
    pub(crate) fn configure(&mut self, name: &str, port: u16, key: Option<&Key>) -> io::Result<()> {
        self.set(name, |out| {
            out.put(WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
            if let Some(key) = key {
                out.put(WGDEVICE_A_PRIVATE_KEY, key);
            }
        })
    }

    /// Makes a device have the peers that are `wanted` where it has those `present`. Returns how many were changed.
    pub(crate) fn align(
        &mut self,
        name: &str,
        present: &BTreeMap<Key, Option<Peer>>,
        wanted: &BTreeMap<Key, Peer>,
    ) -> io::Result<usize> {
        let mut changes: Vec<(Key, Option<Peer>)> =
            present.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (*key, None)).collect();
        let differs = |(key, peer): &(&Key, &Peer)| present.get(*key) != Some(&Some(**peer));
        changes.extend(wanted.iter().filter(differs).map(|(key, peer)| (*key, Some(*peer))));
        for chunk in changes.chunks(BATCH) {
            self.set(name, |out| {
                out.nest(WGDEVICE_A_PEERS, |peers| {
                    for (key, peer) in chunk {
                        peers.nest(0, |out| put_peer(out, key, *peer));
                    }
                });
            })?;
        }
        Ok(changes.len())
    }

    fn set(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> io::Result<()> {
        let set = self.socket.call(self.family, flags::ACK, |out| {
            out.raw(&[WG_CMD_SET_DEVICE, 1, 0, 0]).text(WGDEVICE_A_IFNAME, name);
            fill(out);
        });
        set.map(drop)
    }
}

/// A peer, or without one the removal of who has the key.
fn put_peer(out: &mut Attributes, key: &Key, peer: Option<Peer>) {
    let action = if peer.is_some() { WGPEER_F_REPLACE_ALLOWEDIPS } else { WGPEER_F_REMOVE_ME };
    out.put(WGPEER_A_PUBLIC_KEY, key).put(WGPEER_A_FLAGS, &action.to_ne_bytes());
    let Some(peer) = peer else { return };
    out.put(WGPEER_A_ENDPOINT, &socket_address(peer.endpoint));
    out.nest(WGPEER_A_ALLOWEDIPS, |list| {
        list.nest(0, |allowed| {
            allowed.put(WGALLOWEDIP_A_FAMILY, &FAMILY_V6.to_ne_bytes());
            allowed.put(WGALLOWEDIP_A_IPADDR, &peer.address.octets()).put(WGALLOWEDIP_A_CIDR_MASK, &[128]);
        });
    });
}

/// `struct sockaddr_in` or `sockaddr_in6`: the port is in network order.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let (family, port) = (if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }, address.port());
    let mut bytes = [family.to_ne_bytes(), port.to_be_bytes()].concat();
    match address.ip() {
        IpAddr::V4(address) => bytes.extend([&address.octets()[..], &[0; 8]].concat()),
        // Flow information before, scope after.
        IpAddr::V6(address) => bytes.extend([&[0; 4], &address.octets()[..], &[0; 4]].concat()),
    }
    bytes
}

fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match family {
        FAMILY_V4 => IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?),
    };
    Some(SocketAddr::new(address, port))
}

/// Takes a message in.
fn read(device: &mut Device, message: &[u8]) {
    for (kind, value) in attributes(message) {
        match kind {
            WGDEVICE_A_PUBLIC_KEY => device.public_key = value.try_into().ok(),
            WGDEVICE_A_LISTEN_PORT => {
                device.port = value.try_into().map(u16::from_ne_bytes).unwrap_or_default();
            }
            WGDEVICE_A_PEERS => {
                for (key, peer) in attributes(value).filter_map(|(_, peer)| read_peer(peer)) {
                    // What a later message has of a peer are addresses that did not fit: none of ours has so many.
                    device.peers.entry(key).or_insert(peer);
                }
            }
            _ => {}
        }
    }
}

/// A peer with its key; `None` for one that is not as ours are.
fn read_peer(bytes: &[u8]) -> Option<(Key, Option<Peer>)> {
    let key = attribute(bytes, WGPEER_A_PUBLIC_KEY)?.try_into().ok()?;
    let peer = || {
        let endpoint = parse_address(attribute(bytes, WGPEER_A_ENDPOINT)?)?;
        let mut allowed = attributes(attribute(bytes, WGPEER_A_ALLOWEDIPS)?);
        let ((_, first), None) = (allowed.next()?, allowed.next()) else { return None };
        let address = <[u8; 16]>::try_from(attribute(first, WGALLOWEDIP_A_IPADDR)?).ok()?;
        (attribute(first, WGALLOWEDIP_A_CIDR_MASK)? == [128])
            .then_some(Peer { endpoint, address: address.into() })
    };
    Some((key, peer()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_peer_is_read_as_it_is_written() {
        for endpoint in ["192.0.2.7:51820", "[2001:db8::7]:51820"] {
            let peer = Peer { endpoint: endpoint.parse().unwrap(), address: "fe80::7".parse().unwrap() };
            let mut out = Attributes::default();
            put_peer(&mut out, &[7; 32], Some(peer));
            assert_eq!(read_peer(&out.into_bytes()), Some(([7; 32], Some(peer))));
        }
        let mut out = Attributes::default();
        put_peer(&mut out, &[7; 32], None);
        assert_eq!(read_peer(&out.into_bytes()), Some(([7; 32], None)));
    }

    #[test]
    fn peers_may_come_in_several_messages() {
        let message = |key: u8| {
            let mut out = Attributes::default();
            out.put(WGDEVICE_A_LISTEN_PORT, &51820_u16.to_ne_bytes());
            if key == 1 {
                out.put(WGDEVICE_A_PUBLIC_KEY, &[9; 32]);
            }
            out.nest(WGDEVICE_A_PEERS, |peers| {
                peers.nest(0, |out| put_peer(out, &[key; 32], None));
            });
            out.into_bytes()
        };
        let mut device = Device::default();
        read(&mut device, &message(1));
        read(&mut device, &message(2));
        assert_eq!((device.public_key, device.port, device.peers.len()), (Some([9; 32]), 51820, 2));
    }
}
