//! Who may give out which addresses of a network: a value that is changed by compare-and-swap.
//!
//! A host holds *blocks*, out of which it leases addresses by itself, and *claims* on single addresses that somebody asked for
//! outside of its blocks. Each grant has an epoch, and the epochs of a network only rise: when a right passes from a host whose
//! lease ended to another, records that the first one still has lose against those of the second.
//!
//! When etcd is taken back to a backup, grants made since are not in the value any more, and hosts go on by them. Each host puts back
//! what it has ([`Allocation::restore`]); of two rights that exclude each other the later one stands.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    address::{address, bits, limits, overlap, subnet},
    ipam::Block,
    model::SubnetOptions,
};

/// IPv4 blocks are no larger than this by themselves.
const BLOCK_V4: u8 = 26;
/// A subnet this much shorter than its blocks has 16 of them.
const BLOCKS_BITS: u8 = 4;
const BLOCK_V6: u8 = 120;
/// The smallest block has four addresses.
const SMALLEST: u8 = 2;

/// A host's right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) host: String,
    pub(crate) epoch: u64,
}

/// The value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Allocation {
    /// The last epoch that was given out.
    pub(crate) epoch: u64,
    #[serde(default)]
    pub(crate) blocks: BTreeMap<IpNetwork, Holder>,
    #[serde(default)]
    pub(crate) claims: BTreeMap<IpAddr, Holder>,
    /// Epochs after the first up to the second were given out in a history that is lost: a right of these that is not here did not
    /// pass to somebody else, it is not known of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<(u64, u64)>,
}

/// What became of a right that a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Held,
    /// It is somebody else's, or nobody's any more.
    Passed,
    /// It was granted in a history that is lost, and nothing stands against it.
    Forgotten,
}

/// Prefix length of a subnet's blocks; `wanted` is that of IPv4, 0 leaves it open.
pub(crate) fn block_prefix(subnet: IpNetwork, wanted: u8) -> u8 {
    let (width, usual) = if subnet.is_ipv4() { (32, BLOCK_V4) } else { (128, BLOCK_V6) };
    let by_size = usual.max(subnet.prefix().saturating_add(BLOCKS_BITS));
    let chosen = if wanted != 0 && subnet.is_ipv4() { wanted } else { by_size };
    chosen.clamp(subnet.prefix(), width - SMALLEST)
}

impl Allocation {
    /// One for a new network; epochs begin at a revision of etcd's, so that they are above those of an earlier network that had
    /// the same VNI.
    pub(crate) fn new(revision: i64) -> Self {
        Self { epoch: u64::try_from(revision).unwrap_or_default(), ..Self::default() }
    }

    /// One for a network that was lost, of which a host still has rights.
    pub(crate) fn found_again(revision: i64, rights: &[Block]) -> Self {
        let highest = rights.iter().map(|right| right.epoch).max().unwrap_or_default();
        let epoch = highest.max(u64::try_from(revision).unwrap_or_default());
        Self { epoch, lost: Some((0, epoch)), ..Self::default() }
    }

    /// What became of a host's right.
    pub(crate) fn standing(&self, host: &str, right: &Block) -> Standing {
        let (first, last) = right.range;
        let block = subnet(first, last);
        let held = match block {
            _ if right.is_claim() => self.claims.get(&first),
            Some(block) => self.blocks.get(&block),
            None => None,
        };
        if held.is_some_and(|holder| holder.host == host) {
            return Standing::Held;
        }
        let unknown = right.epoch > self.epoch
            || self.lost.is_some_and(|(low, high)| (low + 1..=high).contains(&right.epoch));
        let later = |holder: &Holder| holder.epoch >= right.epoch;
        let outdone = if right.is_claim() {
            held.is_some_and(later) || self.block_of(first).is_some_and(|(_, h)| h.host != host && later(h))
        } else {
            block.is_none_or(|block| {
                self.blocks.iter().any(|(other, holder)| overlap(*other, block) && later(holder))
            })
        };
        if unknown && !outdone { Standing::Forgotten } else { Standing::Passed }
    }

    /// Puts back the rights of a host that are not known of; how many. Earlier rights to the same addresses end. Single addresses of
    /// others stay theirs: the block around them does without.
    pub(crate) fn restore(&mut self, host: &str, rights: &[Block]) -> usize {
        let before = self.epoch;
        let mut restored = 0;
        let mut highest = before;
        for right in rights {
            if self.standing(host, right) != Standing::Forgotten {
                continue;
            }
            let holder = Holder { host: host.to_owned(), epoch: right.epoch };
            let (first, last) = right.range;
            if right.is_claim() {
                self.claims.insert(first, holder);
            } else if let Some(block) = subnet(first, last) {
                self.blocks.retain(|other, _| !overlap(*other, block));
                self.blocks.insert(block, holder);
            }
            highest = highest.max(right.epoch);
            restored += 1;
        }
        if highest > before {
            // Others may have rights of epochs between.
            let low = self.lost.map_or(before, |(low, _)| low.min(before));
            (self.epoch, self.lost) = (highest, Some((low, highest)));
        }
        restored
    }

    fn next(&mut self, host: &str) -> Holder {
        self.epoch += 1;
        Holder { host: host.to_owned(), epoch: self.epoch }
    }

    /// Gives a host the first block of a subnet that nobody has. When all are given out, one is taken over from a host that is
    /// not `alive`.
    pub(crate) fn grant(
        &mut self,
        subnet: &SubnetOptions,
        prefix: u8,
        host: &str,
        alive: impl Fn(&str) -> bool,
    ) -> Option<(IpNetwork, u64)> {
        let range = subnet.range.unwrap_or(subnet.subnet);
        let block = self.unused(range, prefix.max(range.prefix())).or_else(|| {
            let dead = |(block, holder): &(&IpNetwork, &Holder)| {
                // A claim in it that a living host has stands against everybody's block.
                let claimed = self
                    .claims
                    .iter()
                    .any(|(claim, h)| block.contains(*claim) && h.host != host && alive(&h.host));
                overlap(**block, subnet.subnet) && holder.host != host && !alive(&holder.host) && !claimed
            };
            let oldest = self.blocks.iter().filter(dead).min_by_key(|(_, holder)| holder.epoch);
            oldest.map(|(block, _)| *block)
        })?;
        let holder = self.next(host);
        let epoch = holder.epoch;
        // Those of hosts that are gone end with the block that was around them.
        self.claims.retain(|claim, h| h.host == host || !block.contains(*claim));
        self.blocks.insert(block, holder);
        Some((block, epoch))
    }

    /// The first block in a range that overlaps none and has no claim in it. Blocks are ordered: one walk finds it.
    fn unused(&self, range: IpNetwork, prefix: u8) -> Option<IpNetwork> {
        let width: u8 = if range.is_ipv4() { 32 } else { 128 };
        let size = 1_u128.checked_shl(u32::from(width - prefix))?;
        let (first, last) = limits(range);
        let mut taken: Vec<(u128, u128)> = self
            .blocks
            .keys()
            .filter(|block| overlap(**block, range))
            .map(|block| limits(*block))
            .chain(
                self.claims
                    .keys()
                    .filter(|claim| range.contains(**claim))
                    .map(|claim| (bits(*claim), bits(*claim))),
            )
            .collect();
        taken.sort_unstable();
        let mut start = first;
        for (low, high) in taken {
            if low > start + (size - 1) {
                break;
            }
            if high >= start {
                // The next boundary after it.
                start = first + ((high - first) / size + 1) * size;
            }
        }
        (start + (size - 1) <= last).then(|| IpNetwork::new(address(range, start), prefix).ok())?
    }

    /// Gives a host a single address. Refused with the holder when another host has it, or the block around it, and is `alive`.
    pub(crate) fn claim(
        &mut self,
        wanted: IpAddr,
        host: &str,
        alive: impl Fn(&str) -> bool,
    ) -> Result<u64, Holder> {
        let others = |holder: &&Holder| holder.host != host && alive(&holder.host);
        if let Some(holder) = self.claims.get(&wanted).filter(others) {
            return Err(holder.clone());
        }
        // A claim is the later word on its address.
        if !self.claims.contains_key(&wanted)
            && let Some((_, holder)) = self.block_of(wanted).filter(|(_, holder)| others(holder))
        {
            return Err(holder.clone());
        }
        let holder = self.next(host);
        let epoch = holder.epoch;
        self.claims.insert(wanted, holder);
        Ok(epoch)
    }

    /// The block an address is in.
    pub(crate) fn block_of(&self, wanted: IpAddr) -> Option<(&IpNetwork, &Holder)> {
        self.blocks.iter().find(|(block, _)| block.contains(wanted))
    }

    /// Takes a claim back; says whether there was one of that host.
    pub(crate) fn release_claim(&mut self, wanted: IpAddr, host: &str) -> bool {
        let held = self.claims.get(&wanted).is_some_and(|holder| holder.host == host);
        if held {
            self.claims.remove(&wanted);
        }
        held
    }

    /// Takes everything from a host; how many blocks and claims that were.
    pub(crate) fn forget(&mut self, host: &str) -> (usize, usize) {
        let before = (self.blocks.len(), self.claims.len());
        self.blocks.retain(|_, holder| holder.host != host);
        self.claims.retain(|_, holder| holder.host != host);
        (before.0 - self.blocks.len(), before.1 - self.claims.len())
    }

    /// Blocks of a host with their epochs.
    pub(crate) fn blocks_of(&self, host: &str) -> impl Iterator<Item = (IpNetwork, u64)> {
        self.blocks.iter().filter(move |(_, holder)| holder.host == host).map(|(block, h)| (*block, h.epoch))
    }

    /// Claims of a host with their epochs.
    pub(crate) fn claims_of(&self, host: &str) -> impl Iterator<Item = (IpAddr, u64)> {
        self.claims.iter().filter(move |(_, holder)| holder.host == host).map(|(claim, h)| (*claim, h.epoch))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> SubnetOptions {
        SubnetOptions::new(text.parse().unwrap())
    }

    #[test]
    fn blocks_follow_the_subnet() {
        for (subnet, wanted, prefix) in [
            ("10.0.0.0/16", 0, 26),
            ("10.0.0.0/24", 0, 28),
            ("10.0.0.0/30", 0, 30),
            ("10.0.0.0/24", 26, 26),
            ("10.0.0.0/24", 8, 24),
            ("fd00::/64", 26, 120),
        ] {
            assert_eq!(block_prefix(subnet.parse().unwrap(), wanted), prefix, "{subnet} {wanted}");
        }
    }

    #[test]
    fn a_block_is_taken_over_only_when_none_is_left_and_its_host_is_gone() {
        let mut allocation = Allocation::new(5);
        let subnet = subnet("10.0.0.0/27");
        let (first, epoch) = allocation.grant(&subnet, 28, "a", |_| true).unwrap();
        assert_eq!((first.to_string().as_str(), epoch), ("10.0.0.0/28", 6));
        let (second, _) = allocation.grant(&subnet, 28, "b", |_| false).unwrap();
        assert_eq!(second.to_string(), "10.0.0.16/28");
        assert_eq!(allocation.grant(&subnet, 28, "c", |_| true), None);
        let (taken, epoch) = allocation.grant(&subnet, 28, "c", |host| host != "a").unwrap();
        assert_eq!((taken, epoch), (first, 8));
        assert_eq!(allocation.blocks_of("a").count(), 0);
    }

    #[test]
    fn what_a_host_had_is_given_out_again_by_a_later_right() {
        let mut allocation = Allocation::new(0);
        let subnet = subnet("10.0.0.0/27");
        let (block, first) = allocation.grant(&subnet, 28, "a", |_| true).unwrap();
        allocation.claim("10.0.0.30".parse().unwrap(), "a", |_| true).unwrap();
        let kept = allocation.claim("10.0.0.29".parse().unwrap(), "b", |_| true).unwrap();
        assert_eq!(allocation.forget("a"), (1, 1));
        assert_eq!(allocation.forget("a"), (0, 0));
        assert_eq!(allocation.claims_of("b").map(|(_, epoch)| epoch).collect::<Vec<_>>(), [kept]);
        let (again, later) = allocation.grant(&subnet, 28, "b", |_| true).unwrap();
        assert!(again == block && later > first, "{again} {later}");
    }

    #[test]
    fn claims_keep_out_of_blocks_and_blocks_of_claims() {
        let mut allocation = Allocation::new(0);
        let subnet = subnet("10.0.0.0/26");
        allocation.claim("10.0.0.3".parse().unwrap(), "a", |_| true).unwrap();
        let (block, _) = allocation.grant(&subnet, 28, "b", |_| true).unwrap();
        assert_eq!(block.to_string(), "10.0.0.16/28");
        let inside = "10.0.0.20".parse().unwrap();
        assert_eq!(allocation.claim(inside, "a", |_| true).unwrap_err().host, "b");
        let epoch = allocation.claim(inside, "a", |host| host != "b").unwrap();
        assert!(epoch > allocation.blocks[&block].epoch);
        assert_eq!(allocation.claim(inside, "b", |_| true).unwrap_err().host, "a");
        assert!(!allocation.release_claim(inside, "b"));
        assert!(allocation.release_claim(inside, "a"));
    }

    fn right(range: &str, epoch: u64) -> Block {
        let (first, last) = limits(range.parse().unwrap());
        let at = |bits: u128| IpAddr::from(std::net::Ipv4Addr::from_bits(u32::try_from(bits).unwrap()));
        Block { range: (at(first), at(last)), epoch }
    }

    #[test]
    fn rights_of_a_lost_history_are_put_back_in_whatever_order_hosts_come() {
        // At the backup "a" had a block of epoch 6; "b" got one at 7, "a" another at 8 and an address at 9 since.
        let backup = || {
            let mut allocation = Allocation::new(5);
            allocation.grant(&subnet("10.0.0.0/26"), 28, "a", |_| true).unwrap();
            allocation
        };
        let a = [right("10.0.0.0/28", 6), right("10.0.0.32/28", 8), right("10.0.0.60/32", 9)];
        let b = [right("10.0.0.16/28", 7)];
        for a_first in [true, false] {
            let mut allocation = backup();
            assert_eq!(allocation.standing("b", &b[0]), Standing::Forgotten);
            let counts = if a_first {
                [allocation.restore("a", &a), allocation.restore("b", &b)]
            } else {
                [allocation.restore("b", &b), allocation.restore("a", &a)]
            };
            assert_eq!(counts.iter().sum::<usize>(), 3);
            assert_eq!(allocation.blocks_of("a").map(|(_, epoch)| epoch).collect::<Vec<_>>(), [6, 8]);
            assert_eq!(allocation.claims_of("a").count(), 1);
            assert_eq!(allocation.blocks_of("b").count(), 1);
            assert_eq!((allocation.epoch, allocation.lost), (9, Some((6, 9))));
            assert_eq!(allocation.restore("a", &a) + allocation.restore("b", &b), 0, "once");
            let (_, later) = allocation.grant(&subnet("10.0.0.0/26"), 30, "c", |_| true).unwrap();
            assert_eq!(later, 10);
        }
    }

    #[test]
    fn of_two_rights_from_two_histories_the_later_one_stands() {
        let mut allocation = Allocation::new(5);
        // In the new history others were faster.
        let (block, epoch) = allocation.grant(&subnet("10.0.0.0/26"), 28, "b", |_| true).unwrap();
        assert_eq!((block.to_string().as_str(), epoch), ("10.0.0.0/28", 6));
        for (ours, standing) in [
            (right("10.0.0.0/28", 6), Standing::Passed),
            (right("10.0.0.0/28", 4), Standing::Passed),
            (right("10.0.0.0/30", 6), Standing::Passed),
            (right("10.0.0.5/32", 6), Standing::Passed),
            (right("10.0.0.5/32", 7), Standing::Forgotten),
            (right("10.0.0.0/28", 7), Standing::Forgotten),
        ] {
            assert_eq!(allocation.standing("a", &ours), standing, "{ours:?}");
        }
        let single = allocation.claim("10.0.0.3".parse().unwrap(), "c", |host| host == "c").unwrap();
        assert_eq!(single, 7);
        assert_eq!(allocation.restore("a", &[right("10.0.0.0/28", 9)]), 1);
        assert_eq!(allocation.blocks_of("b").count(), 0);
        assert_eq!(allocation.standing("b", &right("10.0.0.0/28", 6)), Standing::Passed);
        assert_eq!(
            allocation.claims_of("c").count(),
            1,
            "a single address is withheld from the block around it"
        );
        // What passed to another before any history was lost is not taken back.
        let mut whole = Allocation::new(5);
        whole.grant(&subnet("10.0.0.0/28"), 28, "a", |_| true).unwrap();
        whole.grant(&subnet("10.0.0.0/28"), 28, "b", |_| false).unwrap();
        assert_eq!(whole.standing("a", &right("10.0.0.0/28", 6)), Standing::Passed);
        assert_eq!(whole.restore("a", &[right("10.0.0.0/28", 6)]), 0);
    }

    #[test]
    fn a_network_that_was_lost_takes_the_rights_of_all_its_hosts() {
        let rights = [right("10.0.0.0/28", 905)];
        // The new history may be further than the rights are.
        for revision in [100, 2_000] {
            let mut allocation = Allocation::found_again(revision, &rights);
            assert_eq!(allocation.restore("a", &rights), 1);
            assert_eq!(allocation.restore("b", &[right("10.0.0.16/28", 910)]), 1);
            assert_eq!(allocation.restore("c", &[right("10.0.0.0/28", 904)]), 0);
        }
    }

    proptest! {
        /// Whatever hosts ask for and whoever is alive: no address has two holders that both are, and epochs rise.
        #[test]
        fn no_address_has_two_holders(
            steps in proptest::collection::vec((0..5_u8, 0..3_u8, 0..64_u32), 1..80)
        ) {
            let mut allocation = Allocation::new(1);
            let subnet = subnet("10.0.0.0/26");
            let mut dead: HashSet<String> = HashSet::new();
            let mut last = 1;
            for (what, host, number) in steps {
                let host = ["a", "b", "c"][usize::from(host)];
                let alive = |other: &str| !dead.contains(other);
                let wanted = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number));
                let epoch = match what {
                    0 if alive(host) => allocation.grant(&subnet, 28, host, alive).map(|(_, epoch)| epoch),
                    1 if alive(host) => allocation.claim(wanted, host, alive).ok(),
                    2 => { allocation.release_claim(wanted, host); None }
                    3 => { dead.insert(host.to_owned()); None }
                    _ => { dead.remove(host); None }
                };
                if let Some(epoch) = epoch {
                    prop_assert!(epoch > last);
                    last = epoch;
                }
                let mut holders: HashMap<u128, &Holder> = HashMap::new();
                for (block, holder) in &allocation.blocks {
                    let (first, end) = limits(*block);
                    for address in first..=end {
                        prop_assert!(holders.insert(address, holder).is_none(), "two blocks");
                    }
                }
                for (claim, holder) in &allocation.claims {
                    if let Some(block) = holders.get(&bits(*claim)) {
                        prop_assert!(block.host == holder.host || block.epoch < holder.epoch);
                    }
                }
            }
        }
    }
}
