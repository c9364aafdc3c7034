//! The network below: which of the host's addresses VXLAN packets come from, and what fits into one.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use crate::{
    error::{Error, Result},
    link,
    netlink::Socket,
};

/// Outer Ethernet, IP, UDP and VXLAN headers (RFC 7348, 5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// Outer IP and UDP headers, WireGuard's own and its tag (WireGuard, 5.4.6: 16 and 16 bytes).
const TUNNEL_V4: u32 = 60;
const TUNNEL_V6: u32 = 80;
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
    /// This host's address in the tunnel of encrypted networks.
    pub(crate) tunnel: Ipv6Addr,
    /// The tunnel's UDP port.
    pub(crate) tunnel_port: u16,
}

/// The underlay, or why there is none.
#[derive(Clone, Debug, Default)]
pub(crate) enum UnderlayState {
    /// No control plane: no overlays.
    #[default]
    Unconfigured,
    /// It could not be told; the reason.
    Unknown(String),
    Known(Underlay),
}

impl UnderlayState {
    pub(crate) fn get(&self) -> Result<Underlay> {
        match self {
            Self::Unconfigured => Err(Error::NoControlPlane),
            Self::Unknown(reason) => Err(Error::NoUnderlay(reason.clone())),
            Self::Known(underlay) => Ok(*underlay),
        }
    }
}

/// What is configured or decided once and for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) tunnel: Ipv6Addr,
    pub(crate) tunnel_port: u16,
}

impl Underlay {
    /// The largest packet of an overlay.
    pub(crate) fn room(&self, encrypted: bool) -> u32 {
        if encrypted {
            return self.tunnel_mtu().saturating_sub(OVERHEAD_V6);
        }
        self.mtu.saturating_sub(if self.address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 })
    }

    /// The largest packet in the tunnel.
    pub(crate) fn tunnel_mtu(&self) -> u32 {
        self.mtu.saturating_sub(if self.address.is_ipv4() { TUNNEL_V4 } else { TUNNEL_V6 })
    }
}

/// Looks for the address that is wanted, or else for the first global one of the interface that the default route leaves by.
/// The error says what is missing.
pub(crate) fn find(
    socket: &mut Socket,
    options: &Wanted,
) -> io::Result<std::result::Result<Underlay, String>> {
    let addresses = link::all_addresses(socket)?;
    let links = link::list(socket)?;
    let wanted = options.address;
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
    let Wanted { port, tunnel, tunnel_port, .. } = *options;
    Ok(Ok(Underlay { address: address.ip(), mtu, port, tunnel, tunnel_port }))
}
