//! Connection tracking entries of published UDP ports.
//!
//! A UDP "connection" lives as long as its packets come. One that a client began before the port was published (or that belonged
//! to the port's last holder) would keep going nowhere: the translation is decided by the first packet only. So the entries of
//! a UDP host port are removed when it is published and when it is withdrawn: those that lead into the endpoint's subnets, and
//! those that lead to the host itself. Others with the same port (a pod asking a name server out there) are left alone.

use std::{
    io,
    net::{IpAddr, UdpSocket},
};

use nix::errno::Errno;

use crate::{
    model::{Endpoint, Protocol},
    netlink::{Attributes, Messages, Socket, attribute, flags},
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
/// Compare protocol number and destination port.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Removes the entries that an endpoint's published UDP ports make stale.
pub(crate) fn forget(socket: &mut Socket, endpoint: &Endpoint) -> io::Result<()> {
    let published =
        |mapping: &&crate::model::PortMapping| mapping.protocol == Protocol::Udp && mapping.host_port != 0;
    for mapping in endpoint.ports.iter().filter(published) {
        for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            forget_port(socket, family, mapping.host_port, endpoint)?;
        }
    }
    Ok(())
}

fn forget_port(socket: &mut Socket, family: u8, port: u16, endpoint: &Endpoint) -> io::Result<()> {
    let fill = |out: &mut Attributes| {
        out.raw(&[family, 0, 0, 0]);
        out.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                protocol.put(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
                protocol.put(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        out.nest(CTA_FILTER, |filter| {
            filter.put(CTA_FILTER_ORIG_FLAGS, &BY_PROTOCOL_AND_PORT.to_ne_bytes());
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
    for entry in entries {
        let Some(entry) = entry.get(HEADER..) else { continue };
        let Some(original) = attribute(entry, CTA_TUPLE_ORIG) else { continue };
        if !is_stale(entry, port, endpoint) {
            continue;
        }
        let mut messages = Messages::new();
        messages.push(DELETE, flags::ACK, |out| {
            out.raw(&[family, 0, 0, 0]).put(CTA_TUPLE_ORIG | 0x8000, original);
        });
        for reply in socket.exchange(messages)? {
            reply.accept(&[Errno::ENOENT])?;
        }
    }
    Ok(())
}

/// Judges an entry. The port is looked at again: a kernel that does not know the filter answers with everything.
fn is_stale(entry: &[u8], port: u16, endpoint: &Endpoint) -> bool {
    let judge = || {
        let original = attribute(entry, CTA_TUPLE_ORIG)?;
        let protocol = attribute(original, CTA_TUPLE_PROTO)?;
        let udp = attribute(protocol, CTA_PROTO_NUM)? == [Protocol::Udp.number()];
        let same_port = attribute(protocol, CTA_PROTO_DST_PORT)? == port.to_be_bytes();
        let asked = address(original, CTA_IP_V4_DST, CTA_IP_V6_DST)?;
        let answering = address(attribute(entry, CTA_TUPLE_REPLY)?, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?;
        let leads_here = if asked == answering {
            // Only an address of this host can be bound.
            UdpSocket::bind((asked, 0)).is_ok()
        } else {
            endpoint.addresses.iter().any(|subnet| subnet.contains(answering))
        };
        Some(udp && same_port && leads_here)
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
