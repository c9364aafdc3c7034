//! Which networks a pod joins: what its annotations say, else the default network.
//!
//! | annotation | meaning |
//! | --- | --- |
//! | `berth.dev/networks` | *all* networks of the pod, in order: `blue,red@eth5`, or a JSON list of objects |
//! | `k8s.v1.cni.cncf.io/networks` | networks *beside* the default one, as the Network Plumbing Working Group's specification has it: interfaces `net1`, `net2`, …, no default routes unless asked for |
//!
//! The first network's addresses are the pod's. Host ports lead to the first network that can publish them.

use std::net::IpAddr;

use berth_cni::{EndpointOptions, PortMapping};
use serde::Deserialize;

use crate::pod::error::Error;
use crate::proto::runtime::v1::PodSandboxConfig;

/// The networks of the pod.
pub(super) const OURS: &str = "berth.dev/networks";
/// Networks beside the default one (Kubernetes Network Custom Resource Definition De-facto Standard, version 1.3, 3.2).
pub(super) const NPWG: &str = "k8s.v1.cni.cncf.io/networks";
/// More is a mistake.
const NETWORKS_MAX: usize = 16;

/// A network to join, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) network: String,
    pub(super) options: EndpointOptions,
}

/// One element of our annotation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    #[serde(default, alias = "ips")]
    addresses: Vec<String>,
    mac: Option<String>,
    interface: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    priority: i8,
}

/// One element of the other; its `namespace` is that of a resource we don't look at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Additional {
    name: String,
    #[serde(default, rename = "namespace")]
    _namespace: Option<String>,
    #[serde(default)]
    ips: Vec<String>,
    mac: Option<String>,
    interface: Option<String>,
    #[serde(default, rename = "default-route")]
    default_route: Vec<String>,
}

/// What a pod's configuration asks for; `additional` says whether the second annotation is ours to read.
pub(super) fn of(config: &PodSandboxConfig, default: &str, additional: bool) -> Result<Vec<Choice>, Error> {
    let ours = config.annotations.get(OURS).filter(|text| !text.trim().is_empty());
    let mut choices = match ours {
        Some(text) => parse_ours(text)?,
        None => {
            vec![Choice { network: default.to_owned(), options: EndpointOptions::default() }]
        }
    };
    let beside = config.annotations.get(NPWG).filter(|text| additional && !text.trim().is_empty());
    if let Some(text) = beside {
        choices.extend(parse_npwg(text)?);
    }
    let refused = |reason: String| refuse(if ours.is_some() { OURS } else { NPWG }, reason);
    if choices.len() > NETWORKS_MAX {
        return Err(refused(format!("{} networks, and {NETWORKS_MAX} is the most", choices.len())));
    }
    for (index, choice) in choices.iter().enumerate() {
        let before = &choices[..index];
        if before.iter().any(|other| other.network == choice.network) {
            return Err(refused(format!("network {:?} is named twice", choice.network)));
        }
        if before.iter().any(|other| other.options.interface == choice.options.interface) {
            return Err(refused(format!("two networks have interface {:?}", choice.options.interface)));
        }
    }
    if choices.iter().any(|choice| choice.network == "host") {
        let reason = "a pod is on the host's network by its namespace options (hostNetwork), not by this";
        return Err(refused(reason.to_owned()));
    }
    Ok(choices)
}

/// Gives the host ports to the first network that can publish them.
///
/// # Errors
/// None can.
pub(super) fn publish(
    choices: &mut [Choice],
    ports: Vec<PortMapping>,
    publishes: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    if ports.is_empty() {
        return Ok(());
    }
    match choices.iter_mut().find(|choice| publishes(&choice.network)) {
        Some(choice) => {
            choice.options.ports = ports;
            Ok(())
        }
        None => {
            let mapping = ports.iter().map(|port| port.host_port.to_string()).collect::<Vec<_>>().join(", ");
            Err(Error::Port { mapping, reason: "no network of the pod publishes ports on the host" })
        }
    }
}

fn parse_ours(text: &str) -> Result<Vec<Choice>, Error> {
    let wanted: Vec<Wanted> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| refuse(OURS, error.to_string()))?
    } else {
        short(text)
            .map(|(name, interface)| Wanted {
                name: name.to_owned(),
                addresses: Vec::new(),
                mac: None,
                interface: interface.map(str::to_owned),
                aliases: Vec::new(),
                priority: 0,
            })
            .collect()
    };
    let choice = |(index, wanted): (usize, Wanted)| {
        let options = EndpointOptions {
            addresses: addresses(OURS, &wanted.addresses)?,
            mac: wanted.mac.as_deref().map(|text| mac(OURS, text)).transpose()?,
            interface: wanted.interface.unwrap_or_else(|| format!("eth{index}")),
            aliases: wanted.aliases,
            priority: wanted.priority,
            ..EndpointOptions::default()
        };
        Ok(Choice { network: wanted.name, options })
    };
    wanted.into_iter().enumerate().map(choice).collect()
}

fn parse_npwg(text: &str) -> Result<Vec<Choice>, Error> {
    let additional: Vec<Additional> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| refuse(NPWG, error.to_string()))?
    } else {
        short(text)
            .map(|(name, interface)| Additional {
                // `NAMESPACE/NAME`: the network's name is enough for us.
                name: name.rsplit('/').next().unwrap_or(name).to_owned(),
                _namespace: None,
                ips: Vec::new(),
                mac: None,
                interface: interface.map(str::to_owned),
                default_route: Vec::new(),
            })
            .collect()
    };
    let choice = |(index, wanted): (usize, Additional)| {
        let options = EndpointOptions {
            addresses: addresses(NPWG, &wanted.ips)?,
            mac: wanted.mac.as_deref().map(|text| mac(NPWG, text)).transpose()?,
            interface: wanted.interface.unwrap_or_else(|| format!("net{}", index + 1)),
            default_route: !wanted.default_route.is_empty(),
            // One that is asked for comes before the default network's.
            priority: i8::from(!wanted.default_route.is_empty()),
            ..EndpointOptions::default()
        };
        Ok(Choice { network: wanted.name, options })
    };
    additional.into_iter().enumerate().map(choice).collect()
}

/// `NAME[@INTERFACE],…`
fn short(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| match part.split_once('@') {
        Some((name, interface)) => (name, Some(interface)),
        None => (part, None),
    })
}

/// Addresses; a prefix length is the network's own matter and is passed over.
fn addresses(annotation: &'static str, texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    let parse = |text: &String| {
        let bare = text.split('/').next().unwrap_or(text);
        bare.parse().map_err(|_| refuse(annotation, format!("{text:?} is no IP address")))
    };
    texts.iter().map(parse).collect()
}

/// Reads a MAC address, as in `02:42:ac:11:00:02`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok()).flatten())
        .collect();
    bytes?.try_into().ok()
}

fn mac(annotation: &'static str, text: &str) -> Result<[u8; 6], Error> {
    parse_mac(text).ok_or_else(|| refuse(annotation, format!("{text:?} is no MAC address")))
}

fn refuse(annotation: &'static str, reason: String) -> Error {
    Error::Networks { annotation, reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn chosen(annotations: &[(&str, &str)]) -> Result<Vec<Choice>, Error> {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        of(&PodSandboxConfig { annotations, ..PodSandboxConfig::default() }, "bridge", true)
    }

    fn brief(choices: &[Choice]) -> Vec<String> {
        choices.iter().map(|choice| format!("{}@{}", choice.network, choice.options.interface)).collect()
    }

    #[test]
    fn without_annotations_it_is_the_default_network() {
        assert_eq!(brief(&chosen(&[]).unwrap()), ["bridge@eth0"]);
        assert_eq!(brief(&chosen(&[(OURS, " ")]).unwrap()), ["bridge@eth0"]);
    }

    #[test]
    fn lists_in_both_forms() {
        assert_eq!(brief(&chosen(&[(OURS, "blue, red@lan")]).unwrap()), ["blue@eth0", "red@lan"]);
        assert_eq!(brief(&chosen(&[(OURS, "none")]).unwrap()), ["none@eth0"]);
        let json = r#"[{"name": "blue", "addresses": ["10.1.2.3", "fd00::3/64"], "mac": "02:00:00:00:00:0a",
                        "interface": "lan", "aliases": ["db"], "priority": 7}, {"name": "red"}]"#;
        let choices = chosen(&[(OURS, json)]).unwrap();
        assert_eq!(brief(&choices), ["blue@lan", "red@eth1"]);
        let options = &choices[0].options;
        assert_eq!(options.addresses, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]);
        assert_eq!((options.mac, options.priority), (Some([2, 0, 0, 0, 0, 10]), 7));
        assert_eq!(options.aliases, ["db"]);
    }

    #[test]
    fn additional_networks_come_beside_the_default_one() {
        let choices = chosen(&[(NPWG, "kube-system/blue,red@lan")]).unwrap();
        assert_eq!(brief(&choices), ["bridge@eth0", "blue@net1", "red@lan"]);
        assert!(choices[0].options.default_route && !choices[1].options.default_route);
        let json =
            r#"[{"name": "blue", "namespace": "x", "ips": ["10.1.2.3/24"], "default-route": ["10.1.2.1"]}]"#;
        let choices = chosen(&[(NPWG, json), (OURS, "red")]).unwrap();
        assert_eq!(brief(&choices), ["red@eth0", "blue@net1"]);
        assert!(
            choices[1].options.default_route && choices[1].options.priority > choices[0].options.priority
        );
    }

    #[test]
    fn mistakes_name_the_annotation() {
        for (annotation, text, words) in [
            (OURS, "blue,blue", "named twice"),
            (OURS, "blue,red@eth0", "interface \"eth0\""),
            (OURS, "host", "hostNetwork"),
            (OURS, "[{", "EOF"),
            (OURS, r#"[{"name": "a", "speed": 1}]"#, "speed"),
            (OURS, r#"[{"name": "a", "ips": ["10.0.0"]}]"#, "no IP address"),
            (OURS, r#"[{"name": "a", "mac": "0:1"}]"#, "no MAC"),
            (NPWG, r#"[{"name": "a", "bandwidth": {}}]"#, "bandwidth"),
        ] {
            let error = chosen(&[(annotation, text)]).unwrap_err().to_string();
            assert!(error.contains(annotation) && error.contains(words), "{error}");
        }
        let many: Vec<_> = (0..17).map(|n| format!("n{n}")).collect();
        assert!(chosen(&[(OURS, &many.join(","))]).unwrap_err().to_string().contains("16"));
    }
}
