//! What stands in etcd, and under which keys. All values are JSON.
//!
//! | key, below the prefix | value | lives |
//! | --- | --- | --- |
//! | `networks/NAME` | [`NetworkRecord`] | until the network is removed |
//! | `vnis/VNI` | the network's name | as long |
//! | `allocations/VNI` | [`Allocation`](super::allocation::Allocation) | as long |
//! | `hosts/HOST` | [`HostRecord`] | as long as the host's lease |
//! | `endpoints/VNI/HOST/SANDBOX` | [`EndpointRecord`] | as long as the host's lease |
//!
//! A host writes its own `hosts` and `endpoints` only: nothing of these is contended. `networks`, `vnis` and `allocations` are
//! changed by transactions that compare what they were decided on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{model::SubnetOptions, naming::NamedPort};

/// A network, as all hosts see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) name: String,
    /// VXLAN network identifier.
    pub(crate) vni: u32,
    pub(crate) subnets: Vec<SubnetOptions>,
    /// Prefix length of the blocks that hosts get of the IPv4 subnet; 0: chosen by the subnet's size.
    #[serde(default)]
    pub(crate) block: u8,
    /// Bytes; 0: what each host's underlay leaves.
    #[serde(default)]
    pub(crate) mtu: u32,
    #[serde(default)]
    pub(crate) internal: bool,
    /// It goes through the hosts' tunnels.
    #[serde(default)]
    pub(crate) encrypted: bool,
    #[serde(default)]
    pub(crate) attachable: bool,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A host that takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// For people.
    pub(crate) name: String,
    /// Where its VXLAN packets go to (VTEP).
    pub(crate) address: IpAddr,
    /// Rises with each time the host registers: etcd's revision then.
    pub(crate) epoch: i64,
    /// Its end of the tunnel, once it has an encrypted network.
    #[serde(default)]
    pub(crate) tunnel: Option<TunnelRecord>,
}

/// A host's WireGuard device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TunnelRecord {
    /// Its public key, in base64 as `wg` shows it. It changes when the device is made anew.
    pub(crate) public_key: String,
    /// UDP port at the host's address.
    pub(crate) port: u16,
    /// The host's address in the tunnel: where VXLAN packets of encrypted networks go to.
    pub(crate) address: Ipv6Addr,
}

/// A sandbox on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointRecord {
    pub(crate) addresses: Vec<AddressRecord>,
    pub(crate) mac: [u8; 6],
    #[serde(default)]
    pub(crate) names: Names,
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
    /// Its names on every network; the first is what its addresses lead back to.
    #[serde(default)]
    pub(crate) known_as: Vec<String>,
    /// Ports that can be asked for by name.
    #[serde(default)]
    pub(crate) ports: Vec<NamedPort>,
}

/// An address, and since when its host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressRecord {
    pub(crate) address: IpAddr,
    /// Of the block or claim the address is of: of two records of one address, the later right wins.
    pub(crate) epoch: u64,
}

/// What a sandbox is called by people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The pod's name.
    pub name: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its containers' names.
    #[serde(default)]
    pub containers: Vec<String>,
}

/// Key names below a prefix that ends in `/`.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

/// A key, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Network(&'a str),
    Vni(u32),
    Allocation(u32),
    Host(&'a str),
    Endpoint { vni: u32, host: &'a str, sandbox: &'a str },
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: format!("{}/overlay/", prefix.trim_end_matches('/')) }
    }

    /// Begin of them all.
    pub(crate) fn all(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn networks(&self) -> String {
        format!("{}networks/", self.prefix)
    }

    pub(crate) fn network(&self, name: &str) -> String {
        format!("{}networks/{name}", self.prefix)
    }

    pub(crate) fn vni(&self, vni: u32) -> String {
        format!("{}vnis/{vni}", self.prefix)
    }

    pub(crate) fn allocation(&self, vni: u32) -> String {
        format!("{}allocations/{vni}", self.prefix)
    }

    pub(crate) fn host(&self, host: &str) -> String {
        format!("{}hosts/{host}", self.prefix)
    }

    /// All endpoints of a network.
    pub(crate) fn endpoints(&self, vni: u32) -> String {
        format!("{}endpoints/{vni}/", self.prefix)
    }

    pub(crate) fn endpoint(&self, vni: u32, host: &str, sandbox: &str) -> String {
        format!("{}endpoints/{vni}/{host}/{sandbox}", self.prefix)
    }

    /// What a key stands for; `None` for what is not ours.
    pub(crate) fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let mut parts = key.strip_prefix(&self.prefix)?.split('/');
        let kind = parts.next()?;
        let first = parts.next().filter(|part| !part.is_empty())?;
        let key = match kind {
            "networks" => Key::Network(first),
            "hosts" => Key::Host(first),
            "vnis" => Key::Vni(first.parse().ok()?),
            "allocations" => Key::Allocation(first.parse().ok()?),
            "endpoints" => {
                Key::Endpoint { vni: first.parse().ok()?, host: parts.next()?, sandbox: parts.next()? }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys::new("/berth/");
        assert_eq!(keys.parse(&keys.network("blue")), Some(Key::Network("blue")));
        assert_eq!(keys.parse(&keys.host("abc")), Some(Key::Host("abc")));
        assert_eq!(keys.parse(&keys.vni(7)), Some(Key::Vni(7)));
        assert_eq!(keys.parse(&keys.allocation(7)), Some(Key::Allocation(7)));
        let endpoint = Key::Endpoint { vni: 7, host: "abc", sandbox: "pod" };
        assert_eq!(keys.parse(&keys.endpoint(7, "abc", "pod")), Some(endpoint));
        for other in [
            "/berth/overlay/moon/1",
            "/berth/overlay/endpoints/x/a/b",
            "/berth/x",
            "/berth/overlay/hosts/a/b",
        ] {
            assert_eq!(keys.parse(other), None, "{other}");
        }
    }
}
