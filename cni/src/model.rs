//! The words of the model as values: networks, sandboxes, endpoints, published ports.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest interface name the kernel takes (`IFNAMSIZ` without the terminating zero).
pub(crate) const INTERFACE_NAME_MAX: usize = 15;

/// A network as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name: what [`Controller::join`](crate::Controller::join) takes.
    pub name: String,
    /// Driver and its options.
    pub driver: NetworkDriver,
}

/// Which driver a network uses, with that driver's options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A Linux bridge with NAT.
    Bridge(BridgeOptions),
    /// The host's own stack: nothing is set up.
    Host,
    /// Loopback only.
    None,
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
    /// Whether traffic that leaves the bridge gets the host's address.
    pub masquerade: bool,
}

impl BridgeOptions {
    /// A bridge with whole subnets and everything else as usual.
    #[must_use]
    pub fn new(bridge: impl Into<String>, subnets: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            bridge: bridge.into(),
            subnets: subnets.into_iter().map(SubnetOptions::new).collect(),
            mtu: 0,
            masquerade: true,
        }
    }
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
}

impl SubnetOptions {
    /// The whole subnet.
    #[must_use]
    pub fn new(subnet: IpNetwork) -> Self {
        Self { subnet, range: None, gateway: None, reserved: Vec::new() }
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
    /// Whether the sandbox's default routes go through this endpoint.
    pub default_route: bool,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            mac: None,
            interface: "eth0".to_owned(),
            ports: Vec::new(),
            default_route: true,
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
    /// Whether default routes go through it.
    pub default_route: bool,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// The pools the addresses are leased from, in the order of `addresses`.
    pub(crate) pools: Vec<u64>,
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

/// Transport protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// IANA's protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Refuses what the kernel or our records could not hold as a name.
pub(crate) fn check_interface(what: &'static str, name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_MAX;
    if fits
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != ".."
    {
        return Ok(());
    }
    Err(Error::invalid(what, name, "an interface name has 1 to 15 visible characters without '/' and ':'"))
}

/// Refuses names that could not stand in a file name, a key or a message.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if first && rest && name.len() <= 128 {
        return Ok(());
    }
    Err(Error::invalid(what, name, "1 to 128 letters, digits, '-', '_' and '.', a letter or digit first"))
}

/// A stable 64-bit hash (FNV-1a): names derived from it must not change with the compiler.
pub(crate) fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}
