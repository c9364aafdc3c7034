//! The words of the model as values: networks, sandboxes, endpoints, published ports.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::naming::Naming;

pub use crate::protocol::Protocol;

/// A network as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name: what [`Controller::join`](crate::Controller::join) takes.
    pub name: String,
    /// Driver and its options.
    pub driver: NetworkDriver,
    /// Whatever its maker wants to find it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether sandboxes may join that the network's maker did not name; kept for its maker, every sandbox may.
    #[serde(default)]
    pub attachable: bool,
}

impl Network {
    /// A network without labels.
    #[must_use]
    pub fn new(name: impl Into<String>, driver: NetworkDriver) -> Self {
        Self { name: name.into(), driver, labels: BTreeMap::new(), attachable: false }
    }

    /// Whether nothing outside of it is reached from it.
    #[must_use]
    pub fn internal(&self) -> bool {
        match &self.driver {
            NetworkDriver::Bridge(options) => options.forwarding == Forwarding::Internal,
            NetworkDriver::Overlay(options) => options.internal,
            NetworkDriver::Macvlan(_, parent) | NetworkDriver::Ipvlan(_, parent) => parent.internal,
            NetworkDriver::Host | NetworkDriver::Addresses(_) => false,
            NetworkDriver::None => true,
        }
    }

    /// Whether ports of the host can lead into it.
    #[must_use]
    pub fn publishes(&self) -> bool {
        self.driver.bridge().is_some_and(|options| options.forwarding != Forwarding::Internal)
    }

    /// Its subnets; none for `host` and `none`.
    #[must_use]
    pub fn subnets(&self) -> &[SubnetOptions] {
        match &self.driver {
            NetworkDriver::Bridge(options) => &options.subnets,
            NetworkDriver::Overlay(options) => &options.subnets,
            NetworkDriver::Macvlan(_, parent) | NetworkDriver::Ipvlan(_, parent) => &parent.subnets,
            NetworkDriver::Addresses(subnets) => subnets,
            NetworkDriver::Host | NetworkDriver::None => &[],
        }
    }
}

/// Which driver a network uses, with that driver's options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A Linux bridge.
    Bridge(BridgeOptions),
    /// A Linux bridge on each host, joined by VXLAN.
    Overlay(OverlayOptions),
    /// Interfaces with MACs of their own on one of the host's.
    Macvlan(MacvlanMode, ParentOptions),
    /// Interfaces that share the MAC of one of the host's.
    Ipvlan(IpvlanMode, ParentOptions),
    /// Addresses only: somebody else makes the interfaces.
    Addresses(Vec<SubnetOptions>),
    /// The host's own stack: nothing is set up.
    Host,
    /// Loopback only.
    None,
}

impl NetworkDriver {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Overlay(_) => "overlay",
            Self::Macvlan(..) => "macvlan",
            Self::Ipvlan(..) => "ipvlan",
            Self::Addresses(_) => "addresses",
            Self::Host => "host",
            Self::None => "none",
        }
    }

    /// The interface of the host it stands on.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Bridge(options) => Some(&options.bridge),
            Self::Overlay(options) => Some(&options.bridge),
            Self::Macvlan(_, parent) | Self::Ipvlan(_, parent) => Some(&parent.interface),
            Self::Addresses(_) | Self::Host | Self::None => None,
        }
    }

    /// The bridge of the host it has, if it has one: what the firewall and reconciliation look at.
    #[must_use]
    pub fn bridge(&self) -> Option<Cow<'_, BridgeOptions>> {
        match self {
            Self::Bridge(options) => Some(Cow::Borrowed(options)),
            Self::Overlay(options) => Some(Cow::Owned(options.bridge())),
            Self::Macvlan(..) | Self::Ipvlan(..) | Self::Addresses(_) | Self::Host | Self::None => None,
        }
    }
}

/// Options of an overlay network, as this host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayOptions {
    /// VXLAN network identifier, the same on all hosts; 0: not chosen yet.
    pub vni: u32,
    /// The bridge's interface name on this host.
    pub bridge: String,
    /// The VXLAN device's.
    pub vxlan: String,
    /// One subnet per family, the first family's addresses come first.
    pub subnets: Vec<SubnetOptions>,
    /// Prefix length of the blocks that hosts get of the IPv4 subnet; 0: chosen by the subnet's size.
    pub block: u8,
    /// MTU of the pods; 0: what the underlay leaves.
    pub mtu: u32,
    /// Nothing leaves it, nothing comes in.
    pub internal: bool,
    /// Between hosts it goes through WireGuard.
    #[serde(default)]
    pub encrypted: bool,
}

impl OverlayOptions {
    /// What its bridge is on this host. The gateway's address is on all hosts, each answers for its own sandboxes.
    #[must_use]
    pub fn bridge(&self) -> BridgeOptions {
        let forwarding = if self.internal { Forwarding::Internal } else { Forwarding::Nat };
        BridgeOptions {
            bridge: self.bridge.clone(),
            subnets: self.subnets.clone(),
            mtu: self.mtu,
            forwarding,
            inter_container: true,
            hairpin: true,
        }
    }
}

/// Options of a bridge network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeOptions {
    /// The bridge's interface name.
    pub bridge: String,
    /// One subnet per family, the first family's addresses come first.
    pub subnets: Vec<SubnetOptions>,
    /// MTU; 0 takes that of the default route's interface.
    pub mtu: u32,
    /// What happens to packets that leave the bridge.
    pub forwarding: Forwarding,
    /// Whether endpoints reach each other.
    pub inter_container: bool,
    /// Whether a frame may leave by the port it came from: an endpoint that reaches itself over an address it translates.
    pub hairpin: bool,
}

/// What happens to packets between a bridge and the rest of the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// What leaves gets the host's address.
    #[default]
    Nat,
    /// What leaves keeps its address: the world has a route back.
    Routed,
    /// Nothing leaves, nothing comes in; the host itself is reached.
    Internal,
}

impl BridgeOptions {
    /// A bridge with whole subnets and everything else as usual.
    #[must_use]
    pub fn new(bridge: impl Into<String>, subnets: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            bridge: bridge.into(),
            subnets: subnets.into_iter().map(SubnetOptions::new).collect(),
            mtu: 0,
            forwarding: Forwarding::Nat,
            inter_container: true,
            hairpin: true,
        }
    }
}

/// Options of a network on one of the host's interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentOptions {
    /// The host's interface.
    pub interface: String,
    /// The interface is an 802.1q one (`eth0.100`) that the network makes and removes.
    pub made: bool,
    /// One subnet per family, the first family's addresses come first. The gateway is somebody else's address.
    pub subnets: Vec<SubnetOptions>,
    /// MTU; 0 takes that of the interface.
    pub mtu: u32,
    /// No default route leads through it.
    pub internal: bool,
}

/// How interfaces of one parent see each other (`MACVLAN_MODE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    /// They reach each other directly.
    #[default]
    Bridge,
    /// They don't reach each other.
    Private,
    /// Through the switch outside, which has to send frames back where they came from.
    Vepa,
    /// One interface only, which is all the parent has.
    Passthru,
}

/// What the parent's driver looks at (`IPVLAN_MODE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    /// Frames: endpoints are neighbours of the parent's.
    #[default]
    L2,
    /// Packets: the parent routes, nothing is broadcast.
    L3,
    /// As `L3`, and the host's connection tracking sees them.
    L3s,
}

/// One subnet of a network: an address pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetOptions {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Addresses are only given out of this part; the whole subnet when `None`.
    pub range: Option<IpNetwork>,
    /// The bridge's own address; the subnet's first when `None`.
    pub gateway: Option<IpAddr>,
    /// Never given out.
    pub reserved: Vec<IpAddr>,
    /// Addresses of things that are no sandboxes, by name. Never given out.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

impl SubnetOptions {
    /// The whole subnet.
    #[must_use]
    pub fn new(subnet: IpNetwork) -> Self {
        Self { subnet, range: None, gateway: None, reserved: Vec::new(), auxiliary: BTreeMap::new() }
    }
}

/// What a sandbox is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Its id, unique on this host.
    pub id: String,
    /// A path the network namespace is pinned at. For the `host` network it may be `/proc/self/ns/net`.
    pub netns: PathBuf,
}

/// A sandbox and what it has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// One per network it has joined, in order.
    pub endpoints: Vec<Endpoint>,
    /// What it is called, and whom it asks for other names; `None`: it has no names and no resolver.
    #[serde(default)]
    pub naming: Option<Naming>,
    /// Who asked for it, when it is another runtime's ([`GuestSpec::owner`]).
    #[serde(default)]
    pub guest: Option<String>,
}

/// What a sandbox of another runtime is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpec {
    /// The attachment's id, as its runtime knows it.
    pub id: String,
    /// A path the network namespace is pinned at.
    pub netns: PathBuf,
    /// Whose it is: a CNI configuration's name. Who collects what it forgot collects its own only.
    pub owner: String,
}

/// How a sandbox wants to join a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointOptions {
    /// Static addresses, at most one per subnet; the others are chosen.
    pub addresses: Vec<IpAddr>,
    /// The interface's MAC; derived from the address when `None`.
    pub mac: Option<[u8; 6]>,
    /// Interface name in the sandbox.
    pub interface: String,
    /// Ports of the host that lead here.
    pub ports: Vec<PortMapping>,
    /// Whether the sandbox's default routes may go through this endpoint.
    pub default_route: bool,
    /// Of several endpoints with default routes the one of the highest priority has them, of the same the one that joined
    /// first; -50 to 50.
    pub priority: i8,
    /// More names the sandbox has on this network.
    pub aliases: Vec<String>,
    /// What may pass.
    pub bandwidth: Bandwidth,
}

/// Limits of an endpoint, in bits a second; `None`: as fast as it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What the sandbox receives.
    pub ingress: Option<u64>,
    /// What it sends.
    pub egress: Option<u64>,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            mac: None,
            interface: "eth0".to_owned(),
            ports: Vec::new(),
            default_route: true,
            priority: 0,
            aliases: Vec::new(),
            bandwidth: Bandwidth::default(),
        }
    }
}

/// A sandbox's attachment to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    pub network: String,
    /// Interface name in the sandbox; empty for `host`.
    pub interface: String,
    /// The host's side, when there is one.
    pub host_interface: Option<String>,
    /// Addresses with their subnet's prefix length, the network's first family first.
    pub addresses: Vec<IpNetwork>,
    /// The way out, one per family.
    pub gateways: Vec<IpAddr>,
    /// MAC of the interface in the sandbox.
    pub mac: Option<[u8; 6]>,
    /// MTU of the interface in the sandbox.
    pub mtu: u32,
    /// Whether it has default routes.
    pub default_route: bool,
    /// Metric of those: the lowest of a sandbox is used.
    #[serde(default)]
    pub metric: u32,
    /// See [`EndpointOptions::priority`].
    #[serde(default)]
    pub priority: i8,
    /// More names the sandbox has on this network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What may pass.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// The pools the addresses are leased from, in the order of `addresses`.
    pub(crate) pools: Vec<u64>,
}

impl Endpoint {
    /// Whether there is an interface that was made for it.
    #[must_use]
    pub fn has_link(&self) -> bool {
        self.mac.is_some()
    }
}

/// A port of the host that leads to a port of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Only this address of the host; `None` is every address of both families, an unspecified address every address of
    /// its family. `127.0.0.1` is reachable from the host only.
    pub host_ip: Option<IpAddr>,
    /// Port on the host. 0 publishes nothing.
    pub host_port: u16,
    /// Port in the sandbox.
    pub container_port: u16,
}

// === Counters ===

/// Counters of one interface of a sandbox, as the sandbox sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Name in the sandbox.
    pub interface: String,
    /// What came in.
    pub received: Flow,
    /// What went out.
    pub sent: Flow,
}

/// Counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}
