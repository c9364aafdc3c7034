//! Connection tracking entries of published UDP ports.
//!
//! A UDP "connection" lives as long as its packets come. One that a client began before the port was published (or that belonged
//! to the port's last holder) would keep going nowhere: the translation is decided by the first packet only. So the entries of
//! a UDP host port are removed when it is published and when it is withdrawn: those that lead into the endpoint's subnets, and
//! those that lead to the host itself. Others with the same port (a pod asking a name server out there) are left alone.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, UdpSocket},
};

use nix::errno::Errno;

use crate::{
    model::{Endpoint, Protocol},
    netlink::{Attributes, Messages, Socket, attribute, flags},
    ports::published,
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// What is compared: the protocol's number, the destination port.
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;

/// More ports than these are looked for in one list of all UDP entries: for each list the kernel walks its whole table.
const ASKED_ONE_BY_ONE: usize = 4;
/// Entries that are removed by one write.
const BATCH: usize = 128;

/// Removes the entries that an endpoint's published UDP ports make stale. The cost is that of a few lists, however many ports
/// there are.
pub(crate) fn forget(socket: &mut Socket, endpoint: &Endpoint) -> io::Result<()> {
    for (v4, family) in [(true, nix::libc::AF_INET), (false, nix::libc::AF_INET6)] {
        let family = u8::try_from(family).unwrap_or_default();
        let udp = published(endpoint)
            .filter(|(mapping, host)| mapping.protocol == Protocol::Udp && host.is_ipv4() == v4);
        let ports: BTreeSet<u16> = udp.map(|(mapping, _)| mapping.host_port).collect();
        if ports.len() > ASKED_ONE_BY_ONE {
            forget_ports(socket, family, None, &ports, endpoint)?;
            continue;
        }
        for port in &ports {
            forget_ports(socket, family, Some(*port), &ports, endpoint)?;
        }
    }
    Ok(())
}

/// `only`: the kernel need not tell of other ports.
fn forget_ports(
    socket: &mut Socket,
    family: u8,
    only: Option<u16>,
    ports: &BTreeSet<u16>,
    endpoint: &Endpoint,
) -> io::Result<()> {
    let fill = |out: &mut Attributes| {
        out.raw(&[family, 0, 0, 0]);
        out.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                protocol.put(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
                if let Some(port) = only {
                    protocol.put(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                }
            });
        });
        let compared = if only.is_some() { BY_PROTOCOL | BY_PORT } else { BY_PROTOCOL };
        out.nest(CTA_FILTER, |filter| {
            filter.put(CTA_FILTER_ORIG_FLAGS, &compared.to_ne_bytes());
        });
    };
    let entries = match socket.dump(GET, fill) {
        // Connection tracking is not there: nothing is stale.
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EINVAL | Errno::EOPNOTSUPP)
            ) =>
        {
            return Ok(());
        }
        entries => entries?,
    };
    let entries = entries.iter().filter_map(|entry| entry.get(HEADER..));
    let stale: Vec<&[u8]> = entries
        .filter(|entry| is_stale(entry, ports, endpoint))
        .filter_map(|entry| attribute(entry, CTA_TUPLE_ORIG))
        .collect();
    for batch in stale.chunks(BATCH) {
        let mut messages = Messages::new();
        for original in batch {
            messages.push(DELETE, flags::ACK, |out| {
                out.raw(&[family, 0, 0, 0]).put(CTA_TUPLE_ORIG | 0x8000, original);
            });
        }
        for reply in socket.exchange(messages)? {
            reply.accept(&[Errno::ENOENT])?;
        }
    }
    Ok(())
}

/// Judges an entry. The port is looked at again: a kernel that does not know the filter answers with everything.
fn is_stale(entry: &[u8], ports: &BTreeSet<u16>, endpoint: &Endpoint) -> bool {
    let judge = || {
        let original = attribute(entry, CTA_TUPLE_ORIG)?;
        let protocol = attribute(original, CTA_TUPLE_PROTO)?;
        let udp = attribute(protocol, CTA_PROTO_NUM)? == [Protocol::Udp.number()];
        let port = u16::from_be_bytes(attribute(protocol, CTA_PROTO_DST_PORT)?.try_into().ok()?);
        if !udp || !ports.contains(&port) {
            return Some(false);
        }
        let asked = address(original, CTA_IP_V4_DST, CTA_IP_V6_DST)?;
        let answering = address(attribute(entry, CTA_TUPLE_REPLY)?, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?;
        Some(if asked == answering {
            // Only an address of this host can be bound.
            UdpSocket::bind((asked, 0)).is_ok()
        } else {
            endpoint.addresses.iter().any(|subnet| subnet.contains(answering))
        })
    };
    judge().unwrap_or(false)
}

fn address(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let tuple = attribute(tuple, CTA_TUPLE_IP)?;
    if let Some(address) = attribute(tuple, v4) {
        return Some(IpAddr::from(<[u8; 4]>::try_from(address).ok()?));
    }
    Some(IpAddr::from(<[u8; 16]>::try_from(attribute(tuple, v6)?).ok()?))
}
