//! Addresses of both families as numbers, and subnets as ranges of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// The address as a number.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of that number in the family of `subnet`.
pub(crate) fn address(subnet: IpNetwork, bits: u128) -> IpAddr {
    if subnet.is_ipv4() {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

/// The subnet with these first and last addresses, if there is one.
pub(crate) fn subnet(first: IpAddr, last: IpAddr) -> Option<IpNetwork> {
    let width: u32 = if first.is_ipv4() { 32 } else { 128 };
    let differing = u128::BITS - (bits(first) ^ bits(last)).leading_zeros();
    let prefix = u8::try_from(width.checked_sub(differing)?).ok()?;
    let subnet = IpNetwork::new(first, prefix).ok()?;
    (first.is_ipv4() == last.is_ipv4() && limits(subnet) == (bits(first), bits(last))).then_some(subnet)
}

/// First and last address of a subnet.
pub(crate) fn limits(subnet: IpNetwork) -> (u128, u128) {
    let width = if subnet.is_ipv4() { 32_u32 } else { 128 };
    let host_bits = width - u32::from(subnet.prefix());
    let first = bits(subnet.network());
    let span = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    (first, first | span)
}

/// Whether two subnets share an address.
pub(crate) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    let ((a_first, a_last), (b_first, b_last)) = (limits(a), limits(b));
    a.is_ipv4() == b.is_ipv4() && a_first <= b_last && b_first <= a_last
}
