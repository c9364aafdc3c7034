//! The network below: which of the host's addresses VXLAN packets come from, and what fits into one.

use std::{io, net::IpAddr};

use crate::{link, netlink::Socket};

/// Outer Ethernet, IP, UDP and VXLAN headers (RFC 7348, 5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// `RT_SCOPE_UNIVERSE`
const GLOBAL: u8 = 0;

/// This host's place in the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    pub(crate) address: IpAddr,
    /// Of the interface that has the address.
    pub(crate) mtu: u32,
    /// UDP port.
    pub(crate) port: u16,
}

impl Underlay {
    /// The largest packet of an overlay.
    pub(crate) fn room(&self) -> u32 {
        self.mtu.saturating_sub(if self.address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 })
    }
}

/// Looks for the address that is wanted, or else for the first global one of the interface that the default route leaves by.
/// The error says what is missing.
pub(crate) fn find(
    socket: &mut Socket,
    wanted: Option<IpAddr>,
    port: u16,
) -> io::Result<Result<Underlay, String>> {
    let addresses = link::all_addresses(socket)?;
    let links = link::list(socket)?;
    let found = match wanted {
        Some(wanted) => addresses.iter().find(|(_, address, _)| address.ip() == wanted).copied(),
        None => {
            let Some(out) = link::link_out(socket)? else {
                return Ok(Err("there is no default route whose interface could say".to_owned()));
            };
            let mut of_link: Vec<_> = addresses
                .iter()
                .filter(|(index, _, scope)| *index == out.index && *scope == GLOBAL)
                .collect();
            of_link.sort_by_key(|(_, address, _)| address.is_ipv6());
            of_link.first().map(|found| **found)
        }
    };
    let Some((index, address, _)) = found else {
        return Ok(Err(match wanted {
            Some(wanted) => format!("{wanted} is not one of its addresses"),
            None => "the default route's interface has no global address".to_owned(),
        }));
    };
    let mtu = links.iter().find(|link| link.index == index).map_or(0, |link| link.mtu);
    Ok(Ok(Underlay { address: address.ip(), mtu, port }))
}
