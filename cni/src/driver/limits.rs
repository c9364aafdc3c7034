//! Bandwidth limits: a token bucket (tc-tbf) at each end of a veth pair.
//!
//! An interface shapes what it sends, so what a sandbox receives is shaped at the host's end, and what it sends at its own: a sender
//! is slowed down by its own queue instead of by losses. Both go with the pair.

use std::io;

use crate::{
    error::{Error, Result},
    link,
    model::{Bandwidth, Endpoint},
    netlink::{Messages, Socket, flags},
};

const NEWQDISC: u16 = 36;
const REPLACE: u16 = 0x100;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const ROOT: u32 = u32::MAX;
const HANDLE: u32 = 0x0001_0000;
const ETHERNET: u8 = 1;

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

/// Refuses limits where there is no pair to set them on.
pub(super) fn refuse(driver: &'static str, bandwidth: Bandwidth) -> Result<()> {
    match bandwidth.ingress.or(bandwidth.egress) {
        Some(rate) => {
            let reason = format!("a {driver} network has no limits; use a bridge network");
            Err(Error::invalid("bandwidth", rate, reason))
        }
        None => Ok(()),
    }
}

fn failed(direction: &str, endpoint: &Endpoint) -> impl FnOnce(io::Error) -> Error + use<> {
    let (network, interface) = (&endpoint.network, &endpoint.interface);
    Error::kernel(format!(
        "limiting {direction} of {interface} on network {network:?} (the kernel needs sch_tbf)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

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
