//! What drivers do inside a sandbox's namespace, on a thread that has entered it.

use std::{io, net::IpAddr};

use nix::errno::Errno;

use crate::{
    error::Result,
    link,
    model::Endpoint,
    netlink::{Messages, Socket},
    sysctl,
};

/// Index of `lo` in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Set before the interface exists, which takes them over: addresses come from IPAM only, at once. Without an IPv6 address the
/// interface has no IPv6; loopback keeps `::1`.
pub(super) fn quiet_ipv6(wanted: bool) -> Result<()> {
    if !wanted {
        return sysctl::set("ipv6/conf/default/disable_ipv6", "1");
    }
    sysctl::set("ipv6/conf/default/disable_ipv6", "0")?;
    sysctl::set("ipv6/conf/default/accept_ra", "0")?;
    sysctl::set("ipv6/conf/default/accept_dad", "0")
}

/// Addresses and routes, in one write. Loopback comes up as well. `by_gateway` says whether default routes go by the gateways
/// or straight to the link.
pub(super) fn configure(
    inside: &mut Socket,
    index: u32,
    endpoint: &Endpoint,
    by_gateway: bool,
) -> io::Result<()> {
    let mut messages = Messages::new();
    link::set_up(&mut messages, LOOPBACK);
    link::set_up(&mut messages, index);
    for address in &endpoint.addresses {
        link::add_address(&mut messages, index, *address);
    }
    if endpoint.default_route {
        for gateway in &endpoint.gateways {
            let by = Some(*gateway).filter(|_| by_gateway);
            link::add_default_route(&mut messages, index, IpAddr::is_ipv4(gateway), by, endpoint.metric);
        }
    }
    inside.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[Errno::EEXIST]))
}
