//! What a sandbox is called, and which of its ports can be asked for by name.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    names::check_name,
    protocol::Protocol,
};

/// What a sandbox's own names may be at most.
const NAMES_MAX: usize = 64;
const PORTS_MAX: usize = 256;
/// A sandbox's names on every network it joins, and who answers what nobody here knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// The first is what its addresses lead back to.
    pub names: Vec<String>,
    /// Ports that can be asked for by name (SRV).
    pub ports: Vec<NamedPort>,
    /// DNS servers, port 53; the first three are asked, one after the other.
    pub upstream: Vec<IpAddr>,
    /// The servers were named for this sandbox: one on loopback stands in it. Otherwise they are the host's, as its loopback is.
    #[serde(default)]
    pub own_upstream: bool,
    /// Ways lead out of the sandbox that somebody else made.
    #[serde(default)]
    pub other_routes: bool,
}

/// A port with a name, or by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPort {
    /// As asked for: `_NAME._tcp.…`.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Whether a text can be a name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    check_name("name", text).is_ok()
}

impl Naming {
    pub(crate) fn check(&self) -> Result<()> {
        if self.names.len() > NAMES_MAX {
            return Err(Error::invalid("names", self.names.len(), format!("at most {NAMES_MAX}")));
        }
        if self.ports.len() > PORTS_MAX {
            return Err(Error::invalid("named ports", self.ports.len(), format!("at most {PORTS_MAX}")));
        }
        self.names.iter().try_for_each(|name| check_name("name", name))?;
        self.ports.iter().try_for_each(|port| check_name("port name", &port.name))
    }
}
