//! From what a person asks for to a [`Network`]: driver and options by their words, subnets chosen where none are given.
//!
//! The words are Docker's, in a short form (`mtu`, `parent`) and in Docker's own long one (`com.docker.network.driver.mtu`).

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    str::FromStr,
};

use ipnetwork::IpNetwork;

use crate::{
    address::overlap,
    error::{Error, Result},
    model::{
        BridgeOptions, Forwarding, IpvlanMode, MacvlanMode, Network, NetworkDriver, OverlayOptions,
        ParentOptions, SubnetOptions,
    },
    names::{check_interface, check_name, stable_hash},
};

/// Where subnets are chosen from when nobody says: beside the default network's, and out of the way of Kubernetes' and Docker's
/// own defaults.
const POOL_V4: (&str, u8) = ("10.86.0.0/15", 24);
const POOL_V6: (&str, u8) = ("fd85:be:28::/48", 64);
/// What no endpoint can have as an address: this host's, loopback, multicast and broadcast (RFC 6890), and of IPv6 link-local, which
/// every interface has besides. 169.254.0.0/16 and 240.0.0.0/4 are not among them: the kernel routes both as any other, and people
/// use them (the metadata addresses of clouds, and clusters that have no private ones left).
const UNUSABLE: [(&str, &str); 8] = [
    ("0.0.0.0/8", "addresses of this host"),
    ("127.0.0.0/8", "loopback addresses"),
    ("224.0.0.0/4", "multicast addresses"),
    ("255.255.255.255/32", "the broadcast address"),
    ("::/127", "the unspecified and the loopback address"),
    ("::ffff:0:0/96", "IPv4 addresses in IPv6 form"),
    ("fe80::/10", "link-local addresses"),
    ("ff00::/8", "multicast addresses"),
];
/// One network does not need more; each is a line in what people read.
const LABELS_MAX: usize = 64;
const TEXT_MAX: usize = 4_096;

/// A network as a person asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// `bridge`, `overlay`, `macvlan` or `ipvlan`; empty means `bridge`.
    pub driver: String,
    /// At most one per family; a bridge without any gets one.
    pub subnets: Vec<SubnetOptions>,
    /// An IPv6 subnet is chosen when none is given.
    pub ipv6: bool,
    /// Nothing leaves it.
    pub internal: bool,
    /// See [`Network::attachable`].
    pub attachable: bool,
    /// See [`Network::labels`].
    pub labels: BTreeMap<String, String>,
    /// Driver options by their words.
    pub options: BTreeMap<String, String>,
}

/// What is there already.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// First part of the host's interface names.
    pub(crate) prefix: &'a str,
    /// Subnets of networks, and destinations of the host's routes.
    pub(crate) taken: Vec<IpNetwork>,
    /// Names of the host's interfaces.
    pub(crate) interfaces: HashSet<String>,
}

impl NetworkRequest {
    /// The network that is meant.
    pub(crate) fn resolve(mut self, around: &Surroundings<'_>) -> Result<Network> {
        check_name("network", &self.name)?;
        check_texts("label", &self.labels)?;
        check_texts("option", &self.options)?;
        self.subnets.iter().try_for_each(|options| usable(options.subnet))?;
        let mut words = Words { options: std::mem::take(&mut self.options) };
        let driver = match self.driver.as_str() {
            "" | "bridge" => NetworkDriver::Bridge(self.bridge(&mut words, around)?),
            "overlay" => NetworkDriver::Overlay(self.overlay(&mut words, around)?),
            "macvlan" => {
                let mode = words.take("mode", &["macvlan_mode"])?.unwrap_or_default();
                NetworkDriver::Macvlan(mode, self.parent(&mut words, around)?)
            }
            "ipvlan" => {
                let mode = words.take("mode", &["ipvlan_mode"])?.unwrap_or_default();
                NetworkDriver::Ipvlan(mode, self.parent(&mut words, around)?)
            }
            built_in @ ("host" | "none") => {
                let reason = format!("there is one network of it, and it is there: {built_in:?}");
                return Err(Error::invalid("driver", built_in, reason));
            }
            other => {
                return Err(Error::invalid("driver", other, "there are bridge, overlay, macvlan and ipvlan"));
            }
        };
        words.finish(driver.name())?;
        let Self { name, labels, attachable, .. } = self;
        Ok(Network { name, driver, labels, attachable })
    }

    fn bridge(&mut self, words: &mut Words, around: &Surroundings<'_>) -> Result<BridgeOptions> {
        let name = words.take("bridge", &["com.docker.network.bridge.name"])?;
        let mode: Option<Forwarding> =
            words.take("mode", &["com.docker.network.bridge.gateway_mode_ipv4"])?;
        let masquerade =
            words.take::<bool>("masquerade", &["com.docker.network.bridge.enable_ip_masquerade"])?;
        let forwarding = match (self.internal, mode, masquerade) {
            (true, None | Some(Forwarding::Internal), _) => Forwarding::Internal,
            (true, Some(_), _) => {
                return Err(Error::invalid("mode", "nat or routed", "the network is internal"));
            }
            (false, Some(mode), _) => mode,
            (false, None, Some(false)) => Forwarding::Routed,
            (false, None, _) => Forwarding::Nat,
        };
        let inter_container = words.take("icc", &["com.docker.network.bridge.enable_icc"])?.unwrap_or(true);
        let hairpin = words.take("hairpin", &[])?.unwrap_or(true);
        let mtu = words.mtu()?;
        self.choose_subnets(around)?;
        let bridge = name.unwrap_or_else(|| {
            let hash = stable_hash(&[around.prefix, "bridge", &self.name]);
            format!("br-{:012x}", hash & 0xffff_ffff_ffff)
        });
        let subnets = std::mem::take(&mut self.subnets);
        Ok(BridgeOptions { bridge, subnets, mtu, forwarding, inter_container, hairpin })
    }

    /// Subnets where none are given.
    fn choose_subnets(&mut self, around: &Surroundings<'_>) -> Result<()> {
        let v4 = self.subnets.iter().any(|subnet| subnet.subnet.is_ipv4());
        let v6 = self.subnets.iter().any(|subnet| subnet.subnet.is_ipv6());
        if !v4 && !v6 {
            self.subnets.push(SubnetOptions::new(choose(POOL_V4, &around.taken)?));
        }
        if self.ipv6 && !v6 {
            self.subnets.push(SubnetOptions::new(choose(POOL_V6, &around.taken)?));
        }
        Ok(())
    }

    fn overlay(&mut self, words: &mut Words, around: &Surroundings<'_>) -> Result<OverlayOptions> {
        let encrypted: Option<String> =
            words.take("encrypted", &["com.docker.network.driver.overlay.encrypted"])?;
        let encrypted = match encrypted.as_deref() {
            None | Some("false") => false,
            // Docker's users say just `--opt encrypted`.
            Some("" | "true") => true,
            Some(other) => return Err(Error::invalid("encrypted", other, "true or false")),
        };
        let vni = words.take("vni", &["com.docker.network.driver.overlay.vxlanid_list"])?.unwrap_or(0);
        // 24 bits (RFC 7348, 5).
        if vni >= 1 << 24 {
            return Err(Error::invalid("vni", vni, "1 to 16777215"));
        }
        let block = words.take("block", &[])?.unwrap_or(0);
        let mtu = words.mtu()?;
        self.choose_subnets(around)?;
        let v4 = self.subnets.iter().find(|subnet| subnet.subnet.is_ipv4()).map(|subnet| subnet.subnet);
        if block != 0 && !v4.is_some_and(|subnet| (subnet.prefix()..=30).contains(&block)) {
            let reason = "the prefix length of a part of the IPv4 subnet, at most 30";
            return Err(Error::invalid("block", block, reason));
        }
        let subnets = std::mem::take(&mut self.subnets);
        let (bridge, vxlan) = overlay_interfaces(around.prefix, &self.name);
        Ok(OverlayOptions { vni, bridge, vxlan, subnets, block, mtu, internal: self.internal, encrypted })
    }

    fn parent(&mut self, words: &mut Words, around: &Surroundings<'_>) -> Result<ParentOptions> {
        let Some(interface) = words.take::<String>("parent", &[])? else {
            return Err(Error::invalid("parent", "", "which interface of the host? Say `parent=eth1`"));
        };
        check_interface("parent", &interface)?;
        let mtu = words.mtu()?;
        let missing = |v4: bool| !self.subnets.iter().any(|subnet| subnet.subnet.is_ipv4() == v4);
        if self.subnets.is_empty() || (self.ipv6 && missing(false)) {
            return Err(Error::invalid("subnet", "", "name that of the network the parent is on"));
        }
        let made = !around.interfaces.contains(&interface);
        if made && vlan_of(&interface).is_none_or(|(parent, _)| !around.interfaces.contains(parent)) {
            return Err(Error::ParentMissing(interface));
        }
        let subnets = std::mem::take(&mut self.subnets);
        Ok(ParentOptions { interface, made, subnets, mtu, internal: self.internal })
    }
}

/// Refuses a subnet whose addresses no endpoint can have.
pub(crate) fn usable(subnet: IpNetwork) -> Result<()> {
    for (range, what) in UNUSABLE {
        let Ok(range) = range.parse::<IpNetwork>() else { continue };
        // All there is, is refused as a subnet of any kind.
        if subnet.prefix() > 0 && overlap(subnet, range) {
            return Err(Error::invalid("subnet", subnet, format!("no pod can have {what} ({range})")));
        }
    }
    Ok(())
}

/// Names of an overlay network's bridge and VXLAN device on this host.
pub(crate) fn overlay_interfaces(prefix: &str, network: &str) -> (String, String) {
    let hash = stable_hash(&[prefix, "overlay", network]) & 0xffff_ffff_ffff;
    (format!("br-{hash:012x}"), format!("vx-{hash:012x}"))
}

/// `PARENT.VID` as its parts.
pub(crate) fn vlan_of(name: &str) -> Option<(&str, u16)> {
    let (parent, id) = name.rsplit_once('.')?;
    // 0 and 4095 are reserved (IEEE 802.1Q).
    let id = id.parse().ok().filter(|id| (1..4095).contains(id))?;
    (!parent.is_empty()).then_some((parent, id))
}

fn check_texts(what: &'static str, texts: &BTreeMap<String, String>) -> Result<()> {
    if texts.len() > LABELS_MAX {
        return Err(Error::invalid(what, texts.len(), format!("at most {LABELS_MAX}")));
    }
    match texts.iter().find(|(key, value)| key.is_empty() || key.len() + value.len() > TEXT_MAX) {
        Some((key, _)) => {
            Err(Error::invalid(what, key, format!("a key, and at most {TEXT_MAX} bytes with its value")))
        }
        None => Ok(()),
    }
}

/// The first subnet of a pool that nothing has.
fn choose((pool, prefix): (&str, u8), taken: &[IpNetwork]) -> Result<IpNetwork> {
    const TRIED: u128 = 65_536;
    let parsed: IpNetwork = pool
        .parse()
        .map_err(|error: ipnetwork::IpNetworkError| Error::invalid("pool", pool, error.to_string()))?;
    let width: u32 = if parsed.is_ipv4() { 32 } else { 128 };
    let size = 1_u128 << (width - u32::from(prefix));
    let (first, last) = crate::address::limits(parsed);
    (0..TRIED)
        .map(|number| first + number * size)
        .take_while(|start| *start <= last)
        .filter_map(|start| IpNetwork::new(crate::address::address(parsed, start), prefix).ok())
        .find(|candidate| !taken.iter().any(|other| overlap(*candidate, *other)))
        .ok_or_else(|| Error::invalid("subnet", pool, "all of it is in use: name one with --subnet"))
}

// === Words ===

struct Words {
    options: BTreeMap<String, String>,
}

impl Words {
    /// Takes an option by one of its words.
    fn take<T: FromStr<Err: Display>>(&mut self, word: &'static str, others: &[&str]) -> Result<Option<T>> {
        let mut found = None;
        for name in std::iter::once(&word).chain(others) {
            if let Some(value) = self.options.remove(*name) {
                let parsed =
                    value.parse().map_err(|error: T::Err| Error::invalid(word, &value, error.to_string()))?;
                found = Some(parsed);
            }
        }
        Ok(found)
    }

    fn mtu(&mut self) -> Result<u32> {
        Ok(self.take("mtu", &["com.docker.network.driver.mtu"])?.unwrap_or(0))
    }

    /// Refuses what nobody took.
    fn finish(self, driver: &str) -> Result<()> {
        let Some((word, value)) = self.options.into_iter().next() else { return Ok(()) };
        let known = match driver {
            "bridge" => "bridge, mode (nat, routed, internal), masquerade, icc, hairpin and mtu",
            "overlay" => "vni, block, encrypted and mtu",
            _ => "parent, mode and mtu",
        };
        Err(Error::invalid("option", format!("{word}={value}"), format!("driver {driver} knows {known}")))
    }
}

macro_rules! words {
    ($type:ident { $($word:literal => $value:ident),* $(,)? }) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$value),)*
                    _ => Err(format!("one of {}", [$($word),*].join(", "))),
                }
            }
        }

        impl Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$value => $word,)* })
            }
        }
    };
}

words!(Forwarding { "nat" => Nat, "routed" => Routed, "internal" => Internal });
words!(MacvlanMode { "bridge" => Bridge, "private" => Private, "vepa" => Vepa, "passthru" => Passthru });
words!(IpvlanMode { "l2" => L2, "l3" => L3, "l3s" => L3s });

impl NetworkDriver {
    /// Its options by their words: what [`NetworkRequest::options`] would have to say.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, String> {
        let (mut options, mtu) = match self {
            Self::Bridge(bridge) => {
                let options = BTreeMap::from([
                    ("bridge", bridge.bridge.clone()),
                    ("mode", bridge.forwarding.to_string()),
                    ("icc", bridge.inter_container.to_string()),
                    ("hairpin", bridge.hairpin.to_string()),
                ]);
                (options, bridge.mtu)
            }
            Self::Overlay(overlay) => {
                let mut options = BTreeMap::from([
                    ("bridge", overlay.bridge.clone()),
                    ("vxlan", overlay.vxlan.clone()),
                    ("vni", overlay.vni.to_string()),
                ]);
                if overlay.encrypted {
                    options.insert("encrypted", true.to_string());
                }
                if overlay.block != 0 {
                    options.insert("block", overlay.block.to_string());
                }
                (options, overlay.mtu)
            }
            Self::Macvlan(mode, parent) => (
                BTreeMap::from([("parent", parent.interface.clone()), ("mode", mode.to_string())]),
                parent.mtu,
            ),
            Self::Ipvlan(mode, parent) => (
                BTreeMap::from([("parent", parent.interface.clone()), ("mode", mode.to_string())]),
                parent.mtu,
            ),
            Self::Addresses(_) | Self::Host | Self::None => (BTreeMap::new(), 0),
        };
        if mtu != 0 {
            options.insert("mtu", mtu.to_string());
        }
        options.into_iter().map(|(word, value)| (word.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn resolve(request: NetworkRequest) -> Result<Network> {
        let taken = vec!["10.86.0.0/23".parse().unwrap(), "fd85:be:28::/64".parse().unwrap()];
        let interfaces = HashSet::from(["eth1".to_owned()]);
        request.resolve(&Surroundings { prefix: "berth", taken, interfaces })
    }

    fn request(driver: &str, options: &[(&str, &str)]) -> NetworkRequest {
        NetworkRequest {
            name: "blue".into(),
            driver: driver.into(),
            options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NetworkRequest::default()
        }
    }

    #[test]
    fn a_bridge_that_says_nothing_gets_subnets_nobody_has() {
        let network = resolve(NetworkRequest { ipv6: true, ..request("", &[]) }).unwrap();
        let subnets: Vec<_> = network.subnets().iter().map(|subnet| subnet.subnet.to_string()).collect();
        assert_eq!(subnets, ["10.86.2.0/24", "fd85:be:28:1::/64"]);
        let name = network.driver.interface().unwrap();
        assert!(name.starts_with("br-") && name.len() == 15, "{name}");
    }

    #[test]
    fn options_are_understood_in_both_forms_and_given_back() {
        let long = request(
            "bridge",
            &[
                ("com.docker.network.bridge.name", "br9"),
                ("com.docker.network.bridge.enable_icc", "false"),
                ("com.docker.network.bridge.enable_ip_masquerade", "false"),
                ("com.docker.network.driver.mtu", "1400"),
            ],
        );
        let short = [("bridge", "br9"), ("icc", "false"), ("mode", "routed"), ("mtu", "1400")];
        let network = resolve(long).unwrap();
        assert_eq!(network, resolve(request("bridge", &short)).unwrap());
        let options = network.driver.options();
        assert_eq!(options["mode"], "routed");
        assert_eq!((options["icc"].as_str(), options["hairpin"].as_str()), ("false", "true"));
    }

    #[test]
    fn mistakes_are_named() {
        let subnet = |request: NetworkRequest| NetworkRequest {
            subnets: vec![SubnetOptions::new("10.1.0.0/24".parse().unwrap())],
            ..request
        };
        for (request, words) in [
            (request("cloud", &[]), "there are bridge, overlay, macvlan and ipvlan"),
            (request("overlay", &[("encrypted", "perhaps")]), "true or false"),
            (request("overlay", &[("vni", "16777216")]), "1 to 16777215"),
            (request("overlay", &[("block", "31")]), "block"),
            (request("overlay", &[("icc", "true")]), "vni, block, encrypted and mtu"),
            (request("host", &[]), "there is one network of it"),
            (request("bridge", &[("speed", "fast")]), "option \"speed=fast\""),
            (request("bridge", &[("icc", "perhaps")]), "icc \"perhaps\""),
            (request("bridge", &[("mode", "quick")]), "one of nat, routed, internal"),
            (request("macvlan", &[]), "parent=eth1"),
            (request("macvlan", &[("parent", "eth1")]), "subnet"),
            (subnet(request("macvlan", &[("parent", "eth2")])), "\"eth2\""),
            (subnet(request("macvlan", &[("parent", "eth2.7")])), "\"eth2.7\""),
            (subnet(request("ipvlan", &[("parent", "eth1"), ("mode", "l9")])), "one of l2, l3, l3s"),
            (NetworkRequest { internal: true, ..request("bridge", &[("mode", "nat")]) }, "internal"),
        ] {
            let error = resolve(request).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn subnets_that_no_endpoint_can_have_are_refused_by_every_driver() {
        let with = |driver: &str, subnet: &str| {
            let options: &[(&str, &str)] = if driver == "macvlan" { &[("parent", "eth1")] } else { &[] };
            let subnets = vec![SubnetOptions::new(subnet.parse().unwrap())];
            resolve(NetworkRequest { subnets, ..request(driver, options) })
        };
        for (bad, what) in [
            ("127.0.0.0/24", "loopback"),
            ("0.0.0.0/1", "addresses of this host"),
            ("128.0.0.0/1", "multicast"),
            ("239.1.0.0/16", "multicast"),
            ("240.0.0.0/4", "broadcast"),
            ("255.255.255.0/24", "broadcast"),
            ("::/8", "loopback"),
            ("::1/128", "loopback"),
            ("::ffff:10.0.0.0/104", "IPv4 addresses"),
            ("fe80::/64", "link-local"),
            ("ff02::/64", "multicast"),
        ] {
            for driver in ["bridge", "overlay", "macvlan"] {
                let error = with(driver, bad).unwrap_err();
                assert_eq!(error.kind(), crate::Kind::InvalidArgument, "{driver} {bad}");
                let said = error.to_string();
                assert!(said.contains(bad) && said.contains(what), "{driver} {bad}: {said}");
            }
        }
        for good in
            ["10.0.0.0/8", "100.64.0.0/10", "169.254.170.0/24", "240.1.0.0/16", "fd00::/64", "2001:db8::/56"]
        {
            with("bridge", good).unwrap();
        }
    }

    #[test]
    fn a_vlan_of_a_parent_is_made_and_one_that_is_there_is_not() {
        let of = |parent: &str| {
            let mut request = request("macvlan", &[("parent", parent)]);
            request.subnets = vec![SubnetOptions::new("10.1.0.0/24".parse().unwrap())];
            match resolve(request).unwrap().driver {
                NetworkDriver::Macvlan(_, parent) => parent.made,
                other => panic!("{other:?}"),
            }
        };
        assert!(of("eth1.100"));
        assert!(!of("eth1"));
        assert_eq!(vlan_of("eth1.4095"), None);
        assert_eq!(vlan_of("a.b.7"), Some(("a.b", 7)));
    }
}
