//! The firewall: one `inet` table of ours, written once; networks and endpoints are set elements.
//!
//! ```text
//! table inet NAME {
//!   set bridges   { type ifname }                        every bridge network's interface
//!   set subnets4  { type ipv4_addr; flags interval }     subnets whose traffic is masqueraded    (subnets6)
//!   map ports4     { protocol . port -> address . port }             on every host address         (ports6)
//!   map hostports4 { address . protocol . port -> address . port }   on one host address           (hostports6)
//!
//!   set same      { type ifname . ifname }               bridges whose endpoints reach each other, with themselves
//!   set internal  { type ifname }                        bridges that nothing leaves or enters
//!
//!   chain guard       raw prerouting:  from a bridge, to or from 127.0.0.0/8            drop
//!                                      to a tunnel's port of this host                  notrack
//!   chain tunnels     raw output:      to a tunnel's port                               notrack
//!   chain prerouting  dstnat:          to an address of this host                       jump hostports
//!   chain output      dstnat:          to an address of this host                       jump hostports
//!   chain hostports                    dnat to map @hostports4, then @ports4            (and 6; never for ::1)
//!   chain postrouting srcnat:          from @subnets4, not to a bridge                  masquerade
//!                                      from @subnets4 to a bridge through a host port   masquerade   (hairpin)
//!                                      from 127.0.0.0/8 to a bridge                     masquerade   (localhost)
//!   chain forward     filter + 10:     everything                                       jump admin
//!                                      what belongs to a connection                     accept
//!                                      from a bridge to @same                           accept
//!                                      from or to @internal                             drop
//!                                      through a published port                         accept
//!                                      from a bridge to another bridge                  drop         (isolation)
//!   chain admin                        the administrator's own rules: never touched by us
//! }
//! ```
//!
//! The hairpin rule looks for *our* translation only (the connection's original destination port is in our map): a connection
//! that kube-proxy sent from one pod to another over a service address keeps its client's address.
//!
//! `127.0.0.1:port` works from the host because the bridge has `route_localnet` set; the `guard` chain closes what that opens
//! (CVE-2020-8558: neighbours reaching services that listen on loopback). IPv6 has no such switch: a
//! translated packet reaches the pod, and the kernel drops the answer, which would go to ::1 from another interface. So `[::1]:port` is
//! never translated, it is refused at once, and clients of `localhost` fall back to 127.0.0.1.
//!
//! Overlays' packets between hosts (UDP to the ports of VXLAN and WireGuard) are no connections: each is for itself, answers come
//! from other ports. What is in them is tracked; to track them as well would cost each packet twice.
//!
//! The `forward` chain comes after the host's own filters, and before anything of ours it asks the administrator's chain:
//! `nft add rule inet NAME admin …`. Rules there stay when ours are rewritten; they go with the table.
//!
//! A chain's `accept` ends only that chain: when another table drops forwarded packets by policy, nothing in a table of ours can
//! let them through. Whoever has such a policy accepts the bridge there.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use crate::{
    address::{limits, overlap},
    error::{Error, Result},
    model::{BridgeOptions, Endpoint, Forwarding},
    netlink::Socket,
    nft::{self, Element, Hook, Layer, Meta, Register, Rule, Set, Tracked, Transaction},
    ports::published,
};

/// Which rules these are.
const RULES: &str = "berth rules 3";

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `IPPROTO_UDP`
const UDP: u8 = 17;

/// nft's own numbers for types, so that `nft list` shows addresses and ports. A concatenation shifts by 6 bits.
mod kind {
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const PORT: u32 = 13;
    pub(super) const INTERFACE: u32 = 41;
    pub(super) const PROTOCOL_PORT: u32 = PROTOCOL << 6 | PORT;
}

const fn set(name: &'static str, key: (u32, u32), data: Option<(u32, u32)>, interval: bool) -> Set {
    Set { name, key, data, interval }
}

const TARGET4: Option<(u32, u32)> = Some((kind::IPV4 << 6 | kind::PORT, 8));
const TARGET6: Option<(u32, u32)> = Some((kind::IPV6 << 6 | kind::PORT, 20));
const SETS: [Set; 9] = [
    set("same", (kind::INTERFACE << 6 | kind::INTERFACE, 32), None, false),
    set("internal", (kind::INTERFACE, 16), None, false),
    set("bridges", (kind::INTERFACE, 16), None, false),
    set("subnets4", (kind::IPV4, 4), None, true),
    set("subnets6", (kind::IPV6, 16), None, true),
    set("ports4", (kind::PROTOCOL_PORT, 8), TARGET4, false),
    set("ports6", (kind::PROTOCOL_PORT, 8), TARGET6, false),
    set("hostports4", (kind::IPV4 << 12 | kind::PROTOCOL_PORT, 12), TARGET4, false),
    set("hostports6", (kind::IPV6 << 12 | kind::PROTOCOL_PORT, 24), TARGET6, false),
];

/// The chain that is not ours to fill.
const ADMIN: &str = "admin";

/// `NF_INET_*` and nft's standard priorities.
const CHAINS: [(&str, Option<Hook>); 8] = [
    (ADMIN, None),
    ("forward", Some(Hook { kind: "filter", number: 2, priority: 10 })),
    ("guard", Some(Hook { kind: "filter", number: 0, priority: -300 })),
    ("tunnels", Some(Hook { kind: "filter", number: 3, priority: -300 })),
    ("hostports", None),
    ("prerouting", Some(Hook { kind: "nat", number: 0, priority: -100 })),
    ("output", Some(Hook { kind: "nat", number: 3, priority: -100 })),
    ("postrouting", Some(Hook { kind: "nat", number: 4, priority: 100 })),
];

/// Our table.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    table: String,
    /// UDP ports of this host's tunnels.
    tunnels: Vec<u16>,
}

impl Firewall {
    pub(crate) fn new(table: String, tunnels: Vec<u16>) -> Self {
        Self { table, tunnels }
    }

    /// In every rule's comment; another text makes the rules be rewritten.
    fn comment(&self) -> String {
        self.tunnels.iter().fold(RULES.to_owned(), |text, port| format!("{text}, {port}/udp"))
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Makes table, chains, sets and rules be there. One transaction: traffic never sees half of it.
    pub(crate) fn ensure(&self, socket: &mut Socket) -> Result<()> {
        let (rules, wanted) = (rules(&self.tunnels), self.comment());
        let mut present = nft::comments(socket, &self.table).map_err(self.failed("reading"))?;
        present.retain(|(chain, _)| chain != ADMIN);
        let current = present.len() == rules.len() && present.iter().all(|(_, comment)| *comment == wanted);
        let mut tx = Transaction::new(&self.table);
        tx.table();
        for (id, set) in (1..).zip(&SETS) {
            tx.set(set, id);
        }
        for (name, hook) in CHAINS {
            tx.chain(name, hook);
        }
        if !current {
            for (name, _) in CHAINS.into_iter().filter(|(name, _)| *name != ADMIN) {
                tx.clear(name);
            }
            for (chain, rule) in rules {
                tx.rule(chain, &wanted, rule);
            }
        }
        tx.commit(socket).map_err(self.failed("writing"))
    }

    /// Adds elements; those that are there already are fine. One transaction.
    pub(crate) fn add(&self, socket: &mut Socket, elements: &BTreeSet<Element>) -> Result<()> {
        let mut tx = Transaction::new(&self.table);
        tx.add(&elements.iter().collect::<Vec<_>>());
        tx.commit(socket).map_err(self.failed("adding to"))
    }

    /// Removes elements; one transaction unless some of them are gone already.
    pub(crate) fn remove(&self, socket: &mut Socket, elements: &BTreeSet<Element>) -> Result<()> {
        let mut tx = Transaction::new(&self.table);
        tx.remove(&elements.iter().collect::<Vec<_>>());
        match tx.commit(socket) {
            Err(error) if is_missing(&error) => {}
            done => return done.map_err(self.failed("removing from")),
        }
        for element in elements {
            let mut tx = Transaction::new(&self.table);
            tx.remove(&[element]);
            match tx.commit(socket) {
                Err(error) if !is_missing(&error) => return Err(self.failed("removing from")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the sets hold exactly these elements, by difference: what is right is not touched. Returns how many were added
    /// and removed.
    pub(crate) fn align(&self, socket: &mut Socket, desired: &BTreeSet<Element>) -> Result<(usize, usize)> {
        self.ensure(socket)?;
        let (missing, surplus) = self.difference(socket, desired)?.unwrap_or_default();
        let missing: Vec<_> = missing.iter().collect();
        let mut tx = Transaction::new(&self.table);
        tx.remove(&surplus.iter().collect::<Vec<_>>());
        for chunk in missing.chunks(2_000) {
            tx.add(chunk);
            if tx.is_large() {
                let full = std::mem::replace(&mut tx, Transaction::new(&self.table));
                full.commit(socket).map_err(self.failed("restoring"))?;
            }
        }
        tx.commit(socket).map_err(self.failed("restoring"))?;
        Ok((missing.len(), surplus.len()))
    }

    /// What the sets lack of these elements, and what they have beyond them. `None` when there is no table.
    pub(crate) fn difference(
        &self,
        socket: &mut Socket,
        desired: &BTreeSet<Element>,
    ) -> Result<Option<(Vec<Element>, Vec<Element>)>> {
        let mut present = BTreeSet::new();
        for set in SETS {
            match nft::elements(socket, &self.table, set.name) {
                Ok(elements) => present.extend(elements),
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(self.failed("reading")(error)),
            }
        }
        // An interval set that begins after address 0 may show an end at 0 that nobody put there.
        let surplus = present
            .difference(desired)
            .filter(|e| !(e.end && e.key.iter().all(|byte| *byte == 0)))
            .cloned()
            .collect();
        let missing = desired.difference(&present).cloned().collect();
        Ok(Some((missing, surplus)))
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete(&self, socket: &mut Socket) -> Result<()> {
        let mut tx = Transaction::new(&self.table);
        tx.delete_table();
        match tx.commit(socket) {
            Err(error) if is_missing(&error) => Ok(()),
            done => done.map_err(self.failed("deleting")),
        }
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::kernel(format!("{doing} nftables table {:?}", self.table))
    }
}

/// The table or one of its sets is gone: somebody flushed the ruleset.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOENT as i32)
}

// === Elements ===

/// What a bridge network puts into the sets. `subnets`: its own, and those of before that are still in use.
pub(crate) fn network_elements(bridge: &BridgeOptions, subnets: Vec<IpNetwork>) -> BTreeSet<Element> {
    let mut name = bridge.bridge.clone().into_bytes();
    name.resize(16, 0);
    let element = |set, key| Element { set, key, data: None, end: false };
    let mut elements = BTreeSet::from([element("bridges", name.clone())]);
    if bridge.inter_container {
        elements.insert(element("same", [name.as_slice(), &name].concat()));
    }
    if bridge.forwarding == Forwarding::Internal {
        elements.insert(element("internal", name));
    }
    if bridge.forwarding == Forwarding::Nat {
        elements.extend(outermost(subnets).into_iter().flat_map(interval));
    }
    elements
}

/// Leaves out subnets that lie in another one: as intervals of a set they would stand in each other's way.
fn outermost(mut subnets: Vec<IpNetwork>) -> Vec<IpNetwork> {
    subnets.sort_by_key(|subnet| (subnet.is_ipv6(), limits(*subnet).0, subnet.prefix()));
    let mut kept: Vec<IpNetwork> = Vec::new();
    for subnet in subnets {
        // A subnet that shares an address with a larger one lies in it.
        if kept.last().is_none_or(|last| !overlap(*last, subnet)) {
            kept.push(subnet);
        }
    }
    kept
}

/// A subnet as an interval: its first address and, marked as an end, the first after it.
fn interval(subnet: IpNetwork) -> Vec<Element> {
    let (first, last) = limits(subnet);
    let (set, skip) = if subnet.is_ipv4() { ("subnets4", 12) } else { ("subnets6", 0) };
    let key = |address: u128| address.to_be_bytes()[skip..].to_vec();
    let mut elements = vec![Element { set, key: key(first), data: None, end: false }];
    let beyond = last.checked_add(1).filter(|next| !subnet.is_ipv4() || *next <= u128::from(u32::MAX));
    elements.extend(beyond.map(|next| Element { set, key: key(next), data: None, end: true }));
    elements
}

/// What an endpoint's published ports put into the maps.
pub(crate) fn endpoint_elements(endpoint: &Endpoint) -> BTreeSet<Element> {
    published(endpoint)
        .filter_map(|(mapping, host)| {
            let target = endpoint.addresses.iter().find(|address| address.is_ipv4() == host.is_ipv4())?.ip();
            let mut key = Vec::with_capacity(24);
            let set = match (host.is_unspecified(), host.is_ipv4()) {
                (true, true) => "ports4",
                (true, false) => "ports6",
                (false, true) => "hostports4",
                (false, false) => "hostports6",
            };
            if !host.is_unspecified() {
                push_address(&mut key, host);
            }
            key.extend_from_slice(&[mapping.protocol.number(), 0, 0, 0]);
            push_port(&mut key, mapping.host_port);
            let mut data = Vec::with_capacity(20);
            push_address(&mut data, target);
            push_port(&mut data, mapping.container_port);
            Some(Element { set, key, data: Some(data), end: false })
        })
        .collect()
}

fn push_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

/// Parts of a concatenation fill whole registers.
fn push_port(out: &mut Vec<u8>, port: u16) {
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

// === Rules ===

/// Key registers begin at 0, what maps yield at 8.
const KEY: Register = Register(0);
const VALUE: Register = Register(8);

/// `IPS_DST_NAT` of a connection's status.
const TRANSLATED: u32 = 1 << 5;
/// `NF_CT_STATE_BIT` of established and of related.
const ONGOING: u32 = 1 << 1 | 1 << 2;

/// Where the families keep what the rules look at.
struct Family {
    number: u8,
    source: u32,
    destination: u32,
    length: u32,
    tracked_destination: Tracked,
    subnets: &'static str,
    ports: &'static str,
    host_ports: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        number: IPV4,
        source: 12,
        destination: 16,
        length: 4,
        tracked_destination: Tracked::Destination4,
        subnets: "subnets4",
        ports: "ports4",
        host_ports: "hostports4",
    },
    Family {
        number: IPV6,
        source: 8,
        destination: 24,
        length: 16,
        tracked_destination: Tracked::Destination6,
        subnets: "subnets6",
        ports: "ports6",
        host_ports: "hostports6",
    },
];

impl Family {
    /// The first register after an address.
    fn after_address(&self) -> u32 {
        self.length / 4
    }

    fn rule(&self) -> Rule {
        Rule::default().meta(Meta::Family, KEY).equal(KEY, &[self.number])
    }

    /// `KEY` = protocol . destination port.
    fn protocol_and_port(rule: Rule, at: u32) -> Rule {
        rule.meta(Meta::Protocol, Register(at)).payload(Layer::Transport, 2, 2, Register(at + 1))
    }

    fn tracked_protocol_and_port(rule: Rule, at: u32) -> Rule {
        rule.meta(Meta::Protocol, Register(at)).tracked(Tracked::DestinationPort, Register(at + 1))
    }

    fn translate(&self, rule: Rule) -> Rule {
        rule.translate(self.number, VALUE, Register(VALUE.0 + self.after_address()))
    }

    /// Never for `::1`, see the module's documentation.
    fn not_loopback6(&self, rule: Rule) -> Rule {
        if self.number == IPV4 {
            return rule;
        }
        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
        rule.payload(Layer::Network, self.destination, self.length, KEY).differs(KEY, &loopback)
    }

    fn host_ports(&self) -> [Rule; 2] {
        let specific =
            self.not_loopback6(self.rule()).payload(Layer::Network, self.destination, self.length, KEY);
        let specific =
            Self::protocol_and_port(specific, self.after_address()).map(self.host_ports, KEY, VALUE);
        let any = Self::protocol_and_port(self.not_loopback6(self.rule()), KEY.0).map(self.ports, KEY, VALUE);
        [self.translate(specific), self.translate(any)]
    }

    fn sent_by_subnet(&self) -> Rule {
        self.rule().payload(Layer::Network, self.source, self.length, KEY).in_set(self.subnets, KEY)
    }

    fn masquerade(&self) -> [Rule; 3] {
        let leaving = self.sent_by_subnet().meta(Meta::OutputName, KEY).not_in_set("bridges", KEY);
        let back = || {
            self.sent_by_subnet()
                .meta(Meta::OutputName, KEY)
                .in_set("bridges", KEY)
                .tracked(Tracked::Status, KEY)
                .mask(KEY, TRANSLATED.to_ne_bytes())
                .differs(KEY, &[0; 4])
        };
        let any = Self::tracked_protocol_and_port(back(), KEY.0).map(self.ports, KEY, VALUE);
        let specific = back().tracked(self.tracked_destination, KEY);
        let specific =
            Self::tracked_protocol_and_port(specific, self.after_address()).map(self.host_ports, KEY, VALUE);
        [leaving.masquerade(), any.masquerade(), specific.masquerade()]
    }
}

/// All rules with their chains, in order.
fn rules(tunnels: &[u16]) -> Vec<(&'static str, Rule)> {
    let loopback4 = |rule: Rule, offset| rule.payload(Layer::Network, offset, 1, KEY).equal(KEY, &[127]);
    let [v4, v6] = FAMILIES;
    // Every packet passes these: what is told by a look at one byte comes before what is looked up.
    let from_bridge = |rule: Rule| rule.meta(Meta::InputName, KEY).in_set("bridges", KEY);
    let mut rules = vec![
        ("guard", from_bridge(loopback4(v4.rule(), v4.destination)).drop()),
        ("guard", from_bridge(loopback4(v4.rule(), v4.source)).drop()),
    ];
    for port in tunnels {
        let to_port = || {
            let udp = Rule::default().meta(Meta::Protocol, KEY).equal(KEY, &[UDP]);
            udp.payload(Layer::Transport, 2, 2, KEY).equal(KEY, &port.to_be_bytes())
        };
        // Somebody else's that only pass through may have to be translated.
        rules.push(("guard", to_port().for_this_host().untrack()));
        rules.push(("tunnels", to_port().untrack()));
    }
    rules.extend([
        ("prerouting", Rule::default().for_this_host().jump("hostports")),
        ("output", Rule::default().for_this_host().jump("hostports")),
    ]);
    for family in [&v4, &v6] {
        rules.extend(family.host_ports().map(|rule| ("hostports", rule)));
        rules.extend(family.masquerade().map(|rule| ("postrouting", rule)));
    }
    let localhost = loopback4(v4.rule(), v4.source).meta(Meta::OutputName, KEY).in_set("bridges", KEY);
    rules.push(("postrouting", localhost.masquerade()));
    rules.extend(forward().map(|rule| ("forward", rule)));
    rules
}

/// Which packets pass between networks, in order.
fn forward() -> [Rule; 7] {
    let has = |key, bits: u32| {
        Rule::default().tracked(key, KEY).mask(KEY, bits.to_ne_bytes()).differs(KEY, &[0; 4])
    };
    let pair = || Rule::default().meta(Meta::InputName, KEY).meta(Meta::OutputName, Register(KEY.0 + 4));
    let from = |set| Rule::default().meta(Meta::InputName, KEY).in_set(set, KEY);
    let to = |rule: Rule, set| rule.meta(Meta::OutputName, KEY).in_set(set, KEY);
    [
        Rule::default().jump(ADMIN),
        has(Tracked::State, ONGOING).accept(),
        pair().in_set("same", KEY).accept(),
        from("internal").drop(),
        to(Rule::default(), "internal").drop(),
        has(Tracked::Status, TRANSLATED).accept(),
        to(from("bridges"), "bridges").drop(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn subnets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn nested_subnets_are_one_interval() {
        let found = outermost(subnets(&[
            "10.1.2.0/24",
            "fd00::/64",
            "10.1.0.0/16",
            "10.2.0.0/24",
            "fd00::/48",
            "10.1.0.0/16",
        ]));
        assert_eq!(found, subnets(&["10.1.0.0/16", "10.2.0.0/24", "fd00::/48"]));
    }
}
