//! Results and errors, as each version of the specification writes them.

use std::fmt::Display;
use std::net::IpAddr;

use berth_cni::Endpoint;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// What is spoken.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

// Error codes (CNI specification 1.1, "Section 5", "Error").
pub(crate) const VERSION: u32 = 1;
pub(crate) const ENVIRONMENT: u32 = 4;
pub(crate) const IO: u32 = 5;
pub(crate) const DECODING: u32 = 6;
pub(crate) const CONFIGURATION: u32 = 7;
pub(crate) const TRY_AGAIN: u32 = 11;
pub(crate) const UNAVAILABLE: u32 = 50;
/// From 100 on the plugin's own: what the kernel or the records refuse.
pub(crate) const REFUSED: u32 = 100;
/// No address is left.
pub(crate) const EXHAUSTED: u32 = 101;
/// CHECK found something else than ADD made.
pub(crate) const DIFFERS: u32 = 102;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}: {details}")]
pub(crate) struct Failure {
    pub(crate) code: u32,
    message: String,
    details: String,
    version: String,
}

impl Failure {
    pub(crate) fn new(code: u32, message: impl Into<String>, details: impl Display) -> Self {
        let version = VERSIONS.last().copied().unwrap_or_default().to_owned();
        Self { code, message: message.into(), details: details.to_string(), version }
    }

    /// In the words of the version that was asked for.
    pub(crate) fn speaking(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    pub(crate) fn with_code(self, code: u32) -> Self {
        Self { code, ..self }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"cniVersion": self.version, "code": self.code, "msg": self.message, "details": self.details})
    }
}

impl From<berth_cni::Error> for Failure {
    fn from(error: berth_cni::Error) -> Self {
        let code = match error.kind() {
            berth_cni::Kind::InvalidArgument => CONFIGURATION,
            berth_cni::Kind::ResourceExhausted => EXHAUSTED,
            berth_cni::Kind::DeadlineExceeded => TRY_AGAIN,
            _ => REFUSED,
        };
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        Self::new(code, error.to_string(), source)
    }
}

/// The answer to VERSION.
pub(crate) fn versions(asked: &str) -> Value {
    json!({"cniVersion": asked, "supportedVersions": VERSIONS})
}

/// What a result says of an attachment.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The host's bridge.
    pub(crate) bridge: Option<String>,
    pub(crate) host_interface: Option<String>,
    /// Name and MAC of the interface in the namespace; `None` where there is none.
    pub(crate) interface: Option<(String, String)>,
    pub(crate) addresses: Vec<IpNetwork>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) default_route: bool,
}

impl Attached {
    pub(crate) fn new(endpoint: &Endpoint, bridge: Option<&str>) -> Self {
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        Self {
            bridge: bridge.map(str::to_owned),
            host_interface: endpoint.host_interface.clone(),
            interface: endpoint.mac.map(|mac| (endpoint.interface.clone(), text(mac))),
            addresses: endpoint.addresses.clone(),
            gateways: endpoint.gateways.clone(),
            default_route: endpoint.default_route,
        }
    }
}

/// Refuses a previous result that is another attachment's.
pub(crate) fn agree(previous: Option<&Value>, addresses: &[IpNetwork]) -> Result<(), Failure> {
    let previous = previous.and_then(|result| result.get("ips")).and_then(Value::as_array);
    let own = |address: &IpNetwork| {
        let text = json!(address.to_string());
        previous.is_none_or(|ips| ips.iter().any(|ip| ip.get("address") == Some(&text)))
    };
    match addresses.iter().find(|address| !own(address)) {
        Some(address) => Err(Failure::new(
            DIFFERS,
            "the previous result is another attachment's",
            format!("it lacks {address}"),
        )),
        None => Ok(()),
    }
}

/// The result of an attachment. `interfaces` is left out for an IPAM plugin, which makes none.
pub(crate) fn result(version: &str, endpoint: &Attached, netns: &str) -> Value {
    let mut interfaces = Vec::new();
    interfaces.extend(endpoint.bridge.as_ref().map(|name| json!({"name": name})));
    interfaces.extend(endpoint.host_interface.as_ref().map(|name| json!({"name": name})));
    let own = endpoint.interface.as_ref().map(|(name, mac)| {
        interfaces.push(json!({"name": name, "mac": mac, "sandbox": netns}));
        interfaces.len() - 1
    });
    let ips = endpoint.addresses.iter().enumerate().map(|(number, address)| {
        let mut ip = json!({"address": address.to_string()});
        if let Some(gateway) = endpoint.gateways.get(number) {
            ip["gateway"] = gateway.to_string().into();
        }
        if let Some(own) = own {
            ip["interface"] = own.into();
        }
        if version.starts_with("0.") {
            // Versions before 1.0 say which family it is.
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    });
    let routes = endpoint.gateways.iter().filter(|_| endpoint.default_route).map(|gateway| {
        json!({"dst": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway.to_string()})
    });
    let mut result = json!({
        "cniVersion": version,
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": {},
    });
    if !interfaces.is_empty() {
        result["interfaces"] = interfaces.into();
    }
    result
}
