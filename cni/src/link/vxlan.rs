//! rtnetlink requests for VXLAN devices: the device, and its forwarding and neighbour entries.
//!
//! An address on another host is three entries on the device: the VXLAN's own forwarding entry (MAC to the host's address), the
//! bridge's (MAC to this port), and a neighbour (address to MAC), from which the device answers ARP and ND itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use nix::errno::Errno;

use super::{CREATE, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, LINK_HEADER, NEWLINK};
use crate::netlink::{Attributes, Messages, Socket, attribute, flags, native_u32};

const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
const NEIGH_HEADER: usize = 12;
const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const REPLACE: u16 = 0x100;
const FAMILY_BRIDGE: u8 = 7;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

/// Messages of one write; their acknowledgements have to fit the receive buffer.
const BATCH: usize = 128;

/// What makes a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) vni: u32,
    /// This host's underlay address.
    pub(crate) local: IpAddr,
    pub(crate) port: u16,
    /// Index of the only interface that its packets take, with which it ends; 0: any.
    pub(crate) link: u32,
}

/// Creates a device that learns nothing, floods nothing and answers ARP and ND. Down, and no port of a bridge.
pub(crate) fn create(
    socket: &mut Socket,
    name: &str,
    mac: [u8; 6],
    mtu: u32,
    config: &Config,
) -> io::Result<()> {
    let made = socket.call(NEWLINK, CREATE | flags::ACK, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, name).put(IFLA_ADDRESS, &mac);
        out.put(IFLA_MTU, &mtu.to_ne_bytes());
        out.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                data.put(IFLA_VXLAN_ID, &config.vni.to_ne_bytes());
                match config.local {
                    IpAddr::V4(local) => data.put(IFLA_VXLAN_LOCAL, &local.octets()),
                    IpAddr::V6(local) => data.put(IFLA_VXLAN_LOCAL6, &local.octets()),
                };
                if config.link != 0 {
                    data.put(IFLA_VXLAN_LINK, &config.link.to_ne_bytes());
                }
                data.put(IFLA_VXLAN_PORT, &config.port.to_be_bytes());
                data.put(IFLA_VXLAN_LEARNING, &[0]).put(IFLA_VXLAN_PROXY, &[1]);
            });
        });
    });
    made.map(drop)
}

/// How a device was made; `None` when it is no VXLAN device.
pub(crate) fn config(socket: &mut Socket, name: &str) -> io::Result<Option<Config>> {
    const GETLINK: u16 = 18;
    let found = socket.call(GETLINK, 0, |out| {
        out.raw(&[0; LINK_HEADER]).text(IFLA_IFNAME, name);
    });
    let found = match found {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
        found => found?,
    };
    let parse = |payload: &Vec<u8>| {
        let info = attribute(payload.get(LINK_HEADER..)?, IFLA_LINKINFO)?;
        let data = attribute(info, IFLA_INFO_DATA)?;
        let local = match (attribute(data, IFLA_VXLAN_LOCAL), attribute(data, IFLA_VXLAN_LOCAL6)) {
            (Some(v4), _) => IpAddr::from(<[u8; 4]>::try_from(v4).ok()?),
            (None, v6) => IpAddr::from(<[u8; 16]>::try_from(v6?).ok()?),
        };
        let port = u16::from_be_bytes(attribute(data, IFLA_VXLAN_PORT)?.try_into().ok()?);
        let link = attribute(data, IFLA_VXLAN_LINK).and_then(native_u32).unwrap_or_default();
        Some(Config { vni: attribute(data, IFLA_VXLAN_ID).and_then(native_u32)?, local, port, link })
    };
    Ok(found.first().and_then(parse))
}

/// Makes a bridge know the MAC behind one of its ports.
pub(crate) fn add_port_entry(socket: &mut Socket, port: u32, mac: [u8; 6]) -> io::Result<()> {
    let added = socket.call(NEWNEIGH, flags::CREATE | REPLACE | flags::ACK, |out| {
        out.raw(&header(FAMILY_BRIDGE, port, NUD_NOARP, NTF_MASTER)).put(NDA_LLADDR, &mac);
    });
    added.map(drop)
}

// === Entries ===

/// What a device knows: MACs with the hosts they are on, MACs the bridge sends here, neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) forwarding: BTreeMap<[u8; 6], IpAddr>,
    pub(crate) bridge: BTreeSet<[u8; 6]>,
    pub(crate) neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

impl Entries {
    /// One address on another host.
    pub(crate) fn add(&mut self, address: IpAddr, mac: [u8; 6], host: IpAddr) {
        self.forwarding.insert(mac, host);
        self.bridge.insert(mac);
        self.neighbours.insert(address, mac);
    }
}

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; NEIGH_HEADER] {
    let mut header = [0; NEIGH_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

fn put_address(out: &mut Attributes, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.put(NDA_DST, &address.octets()),
        IpAddr::V6(address) => out.put(NDA_DST, &address.octets()),
    };
}

/// Another host: addresses of one link need its index.
fn put_host(out: &mut Attributes, host: IpAddr, link: u32) {
    put_address(out, host);
    if link != 0 {
        out.put(NDA_IFINDEX, &link.to_ne_bytes());
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

/// Makes a device know `wanted` where it knows `present`: what is right is not touched. `link` is its [`Config::link`]. Returns how many entries were added or
/// changed, and how many removed.
pub(crate) fn align(
    socket: &mut Socket,
    (index, link): (u32, u32),
    present: &Entries,
    wanted: &Entries,
) -> io::Result<(usize, usize)> {
    let (mut removals, mut additions) = (Changes::default(), Changes::default());
    for address in present.neighbours.keys().filter(|address| !wanted.neighbours.contains_key(*address)) {
        removals.push(DELNEIGH, 0, &header(family(*address), index, 0, 0), |out| put_address(out, *address));
    }
    for mac in present.bridge.difference(&wanted.bridge) {
        removals.push(DELNEIGH, 0, &header(FAMILY_BRIDGE, index, 0, NTF_MASTER), |out| {
            out.put(NDA_LLADDR, mac);
        });
    }
    for (mac, host) in present.forwarding.iter().filter(|(mac, _)| !wanted.forwarding.contains_key(*mac)) {
        removals.push(DELNEIGH, 0, &header(FAMILY_BRIDGE, index, 0, NTF_SELF), |out| {
            out.put(NDA_LLADDR, mac);
            put_host(out, *host, link);
        });
    }
    let set = flags::CREATE | REPLACE;
    for (mac, host) in
        wanted.forwarding.iter().filter(|(mac, host)| present.forwarding.get(*mac) != Some(host))
    {
        additions.push(
            NEWNEIGH,
            set,
            &header(FAMILY_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF),
            |out| {
                out.put(NDA_LLADDR, mac);
                put_host(out, *host, link);
            },
        );
    }
    for mac in wanted.bridge.difference(&present.bridge) {
        additions.push(NEWNEIGH, set, &header(FAMILY_BRIDGE, index, NUD_NOARP, NTF_MASTER), |out| {
            out.put(NDA_LLADDR, mac);
        });
    }
    let changed =
        wanted.neighbours.iter().filter(|(address, mac)| present.neighbours.get(*address) != Some(mac));
    for (address, mac) in changed {
        additions.push(NEWNEIGH, set, &header(family(*address), index, NUD_PERMANENT, 0), |out| {
            put_address(out, *address);
            out.put(NDA_LLADDR, mac);
        });
    }
    let counts = (additions.count, removals.count);
    removals.send(socket, &[Errno::ENOENT])?;
    additions.send(socket, &[Errno::EEXIST])?;
    Ok(counts)
}

/// Messages in batches.
#[derive(Default)]
struct Changes {
    batches: Vec<Messages>,
    count: usize,
}

impl Changes {
    fn push(&mut self, kind: u16, flags: u16, header: &[u8], fill: impl FnOnce(&mut Attributes)) {
        if self.count.is_multiple_of(BATCH) {
            self.batches.push(Messages::new());
        }
        self.count += 1;
        if let Some(batch) = self.batches.last_mut() {
            batch.push(kind, flags, |out| {
                out.raw(header);
                fill(out);
            });
        }
    }

    /// One that fails does not keep the others from being done.
    fn send(self, socket: &mut Socket, fine: &[Errno]) -> io::Result<()> {
        let mut failure = None;
        for batch in self.batches {
            for reply in socket.exchange(batch)? {
                failure = failure.or(reply.accept(fine).err());
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// What a device knows now.
pub(crate) fn entries(socket: &mut Socket, index: u32) -> io::Result<Entries> {
    let mut found = Entries::default();
    for family in [FAMILY_BRIDGE, FAMILY_V4, FAMILY_V6] {
        let dump = socket.dump(GETNEIGH, |out| {
            out.raw(&header(family, 0, 0, 0));
        })?;
        for entry in dump.iter().filter(|entry| entry.get(4..).and_then(native_u32) == Some(index)) {
            read(&mut found, entry);
        }
    }
    Ok(found)
}

fn read(into: &mut Entries, entry: &[u8]) -> Option<()> {
    let attributes = entry.get(NEIGH_HEADER..)?;
    let state = u16::from_ne_bytes(entry.get(8..10)?.try_into().ok()?);
    let (family, entry_flags) = (*entry.first()?, *entry.get(10)?);
    let mac: [u8; 6] = attribute(attributes, NDA_LLADDR)?.try_into().ok()?;
    let address = attribute(attributes, NDA_DST).and_then(|bytes| match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    });
    if family != FAMILY_BRIDGE {
        if state & NUD_PERMANENT != 0 {
            into.neighbours.insert(address?, mac);
        }
    } else if entry_flags & NTF_SELF != 0 {
        into.forwarding.insert(mac, address?);
    } else if state & NUD_PERMANENT == 0 {
        // Permanent ones are the port's own address.
        into.bridge.insert(mac);
    }
    Some(())
}
