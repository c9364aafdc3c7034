//! Bandwidth limits: token buckets (tc-tbf) on interfaces.
//!
//! An interface shapes what it sends, so what a sandbox receives is shaped at the host's end of its veth pair, and what it sends
//! at its own: a sender is slowed down by its own queue instead of by losses. Both go with the pair.
//!
//! A macvlan or ipvlan has no other end. What it receives is led through an intermediate device (ifb) beside it in the sandbox,
//! which shapes it before the sandbox sees it:
//!
//! ```text
//!   parent ── eth0 ── ingress: u32, mirred ──► ifb-eth0 (tbf) ──► the sandbox's stack
//!             eth0 (tbf) ◄──────────────────────────────────────── what the sandbox sends
//! ```
//!
//! Packets come to ipvlan in mode `l3s` past that hook: there only what is sent can be limited.

use std::io;

use nix::errno::Errno;

use crate::{
    error::{Error, Result},
    link,
    model::Endpoint,
    names::{INTERFACE_NAME_MAX, stable_hash},
    netlink::{Messages, Socket, flags},
};

const NEWQDISC: u16 = 36;
const NEWTFILTER: u16 = 44;
const REPLACE: u16 = 0x100;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const ROOT: u32 = u32::MAX;
const HANDLE: u32 = 0x0001_0000;
const ETHERNET: u8 = 1;
/// `TC_H_INGRESS`, and the handle that such a queue has.
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// What the intermediate devices' names begin with.
const INTERMEDIATE: &str = "ifb-";

/// The bucket holds what is sent in a 50th of a second, but never less than this many bytes: a burst must take a packet.
const BURST_MIN: u64 = 16 * 1024;
const BURST_PER_SECOND: u64 = 50;
/// The queue before the bucket holds what is sent in a 20th of a second: longer only adds to the delay.
const QUEUE_PER_SECOND: u64 = 20;

/// A token bucket, in bytes and bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    rate: u64,
    burst: u32,
    limit: u32,
}

impl Bucket {
    fn new(bits_per_second: u64, mtu: u32) -> Self {
        let rate = (bits_per_second / 8).max(1);
        let burst = (rate / BURST_PER_SECOND).max(BURST_MIN).max(2 * u64::from(mtu));
        let limit = burst + rate / QUEUE_PER_SECOND;
        let fit = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { rate, burst: fit(burst), limit: fit(limit) }
    }

    fn set(self, socket: &mut Socket, index: u32) -> io::Result<()> {
        let mut parameters = [0; 36];
        // struct tc_tbf_qopt: two struct tc_ratespec (12 bytes; link layer at 1, rate at 8), limit, buffer, mtu.
        parameters[1] = ETHERNET;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        let mut messages = Messages::new();
        messages.push(NEWQDISC, flags::CREATE | REPLACE, |out| {
            // struct tcmsg
            out.raw(&[0; 4]).raw(&index.to_ne_bytes()).raw(&HANDLE.to_ne_bytes());
            out.raw(&ROOT.to_ne_bytes()).raw(&[0; 4]);
            out.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |options| {
                options.put(TCA_TBF_PARMS, &parameters).put(TCA_TBF_BURST, &self.burst.to_ne_bytes());
                if self.rate > u64::from(u32::MAX) {
                    options.put(TCA_TBF_RATE64, &self.rate.to_ne_bytes());
                }
            });
        });
        socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[]))
    }
}

/// Limits what the sandbox sends, at its interface; `inside` is in its namespace.
pub(super) fn inside(inside: &mut Socket, index: u32, endpoint: &Endpoint) -> Result<()> {
    let Some(rate) = endpoint.bandwidth.egress else { return Ok(()) };
    Bucket::new(rate, endpoint.mtu).set(inside, index).map_err(failed("egress", endpoint))
}

/// Limits what the sandbox receives, at the host's end.
pub(crate) fn outside(host: &mut Socket, endpoint: &Endpoint) -> Result<()> {
    let (Some(rate), Some(name)) = (endpoint.bandwidth.ingress, endpoint.host_interface.as_deref()) else {
        return Ok(());
    };
    let link = link::find(host, name).and_then(|link| link.ok_or(io::ErrorKind::NotFound.into()));
    let set = link.and_then(|link| Bucket::new(rate, endpoint.mtu).set(host, link.index));
    set.map_err(failed("ingress", endpoint))
}

/// Limits what an interface without another end receives; `inside` is in the sandbox's namespace. What an earlier attempt made
/// is taken as it is.
pub(super) fn intermediate(inside: &mut Socket, index: u32, endpoint: &Endpoint) -> Result<()> {
    let Some(rate) = endpoint.bandwidth.ingress else { return Ok(()) };
    let name = intermediate_name(&endpoint.interface);
    let set = |inside: &mut Socket| {
        match link::create_ifb(inside, &name, endpoint.mtu) {
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            made => made?,
        }
        let found = link::find(inside, &name)?.filter(|link| link.kind == "ifb");
        let device = found.ok_or_else(|| io::Error::other(format!("{name:?} is another interface")))?;
        Bucket::new(rate, endpoint.mtu).set(inside, device.index)?;
        lead(inside, index, device.index)
    };
    set(inside).map_err(failed("ingress", endpoint))
}

/// Removes what [`intermediate`] made, when there is such a limit.
pub(super) fn remove_intermediate(inside: &mut Socket, endpoint: &Endpoint) -> io::Result<()> {
    if endpoint.bandwidth.ingress.is_none() {
        return Ok(());
    }
    let name = intermediate_name(&endpoint.interface);
    match link::find(inside, &name)? {
        Some(found) if found.kind == "ifb" => link::delete(inside, &name),
        _ => Ok(()),
    }
}

/// The device beside an interface.
pub(crate) fn intermediate_name(interface: &str) -> String {
    let room = INTERFACE_NAME_MAX - INTERMEDIATE.len();
    if interface.len() <= room {
        return format!("{INTERMEDIATE}{interface}");
    }
    let mut name = format!("{INTERMEDIATE}{:016x}", stable_hash(&[interface]));
    name.truncate(INTERFACE_NAME_MAX);
    name
}

/// Leads all that an interface receives through another (linux/pkt_cls.h, linux/tc_act/tc_mirred.h).
fn lead(socket: &mut Socket, from: u32, through: u32) -> io::Result<()> {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TERMINAL: u8 = 1;
    const MIRRED_PARMS: u16 = 2;
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    /// The first entry of the first table: there is one of it.
    const FIRST: u32 = 0x8000_0001;
    const ALL_PROTOCOLS: u16 = 3;
    let new = flags::CREATE | flags::EXCL;
    let mut messages = Messages::new();
    messages.push(NEWQDISC, new, |out| {
        out.raw(&[0; 4]).raw(&from.to_ne_bytes()).raw(&INGRESS_HANDLE.to_ne_bytes());
        out.raw(&INGRESS.to_ne_bytes()).raw(&[0; 4]).text(TCA_KIND, "ingress");
    });
    messages.push(NEWTFILTER, new, |out| {
        // Priority 1 in the upper half, the protocol in network order in the lower.
        let info = 1 << 16 | u32::from(ALL_PROTOCOLS.to_be());
        out.raw(&[0; 4]).raw(&from.to_ne_bytes()).raw(&FIRST.to_ne_bytes());
        out.raw(&INGRESS_HANDLE.to_ne_bytes()).raw(&info.to_ne_bytes()).text(TCA_KIND, "u32");
        out.nest(TCA_OPTIONS, |options| {
            // struct tc_u32_sel (flags at 0, number of keys at 2) with one struct tc_u32_key: a mask of nothing fits all.
            let mut selector = [0; 32];
            (selector[0], selector[2]) = (TERMINAL, 1);
            options.put(TCA_U32_SEL, &selector).nest(TCA_U32_ACT, |actions| {
                actions.nest(1, |action| {
                    action.text(1, "mirred").nest(2, |options| {
                        // struct tc_mirred: index, capabilities, what becomes of the packet, two counters, what to do, where.
                        let fields = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, through];
                        options.put(MIRRED_PARMS, &fields.map(u32::to_ne_bytes).concat());
                    });
                });
            });
        });
    });
    socket.exchange(messages)?.iter().try_for_each(|reply| reply.accept(&[Errno::EEXIST]))
}

fn failed(direction: &str, endpoint: &Endpoint) -> impl FnOnce(io::Error) -> Error + use<> {
    let (network, interface) = (&endpoint.network, &endpoint.interface);
    Error::kernel(format!(
        "limiting {direction} of {interface} on network {network:?} (the kernel needs sch_tbf; on macvlan and ipvlan also ifb, sch_ingress, cls_u32 and act_mirred)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intermediate_devices_have_names_that_fit() {
        assert_eq!(intermediate_name("eth0"), "ifb-eth0");
        let (one, other) = (intermediate_name("interface-00001"), intermediate_name("interface-00002"));
        assert!(one.len() == INTERFACE_NAME_MAX && one.starts_with("ifb-") && one != other, "{one} {other}");
    }

    #[test]
    fn buckets_take_a_packet_and_fit_the_kernels_numbers() {
        assert_eq!(Bucket::new(1_000, 1500), Bucket { rate: 125, burst: 16_384, limit: 16_390 });
        assert_eq!(Bucket::new(1_000, 65_535).burst, 131_070);
        let ten_gigabits = Bucket::new(10_000_000_000, 1500);
        assert_eq!((ten_gigabits.rate, ten_gigabits.burst), (1_250_000_000, 25_000_000));
        let most = Bucket::new(1_000_000_000_000_000, 1500);
        assert_eq!((most.rate, most.burst, most.limit), (125_000_000_000_000, u32::MAX, u32::MAX));
    }
}
