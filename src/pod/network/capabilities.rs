//! What plugins are told of a pod beside its namespace: arguments and capability arguments, as kubelets' runtimes give them.

use berth_cni::{Bandwidth, PortMapping};
use serde_json::{Map, Value, json};

use super::choice::Choice;
use crate::pod::error::Error;
use crate::proto::runtime::v1::PodSandboxConfig;

/// What containerd and CRI-O call the pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// No limit on bursts: what containerd tells the bandwidth plugin. In bits.
const BURST: u64 = 4_294_967_295;
/// The limits the kubelet has for rates: 1k to 1P bits a second.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// `CNI_ARGS`.
pub(super) fn arguments(config: &PodSandboxConfig, id: &str) -> Vec<(&'static str, String)> {
    let metadata = config.metadata.clone().unwrap_or_default();
    vec![
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id.to_owned()),
        ("K8S_POD_UID", metadata.uid),
    ]
}

/// Capability arguments (CONVENTIONS.md of the CNI project, "Dynamic Plugin specific fields").
pub(super) fn capabilities(config: &PodSandboxConfig, choice: &Choice) -> Map<String, Value> {
    let mut capabilities = Map::new();
    let mut put = |name: &str, value: Value| capabilities.insert(name.to_owned(), value);
    let options = &choice.options;
    if !options.ports.is_empty() {
        put("portMappings", options.ports.iter().map(port).collect());
    }
    if !options.addresses.is_empty() {
        put("ips", options.addresses.iter().map(|address| Value::String(address.to_string())).collect());
    }
    if let Some(mac) = options.mac {
        put("mac", Value::String(mac.map(|byte| format!("{byte:02x}")).join(":")));
    }
    if !config.annotations.is_empty() {
        put(ANNOTATIONS, config.annotations.iter().map(|(key, text)| (key.clone(), text.clone())).collect());
    }
    if let Some(linux) = config.linux.as_ref().filter(|linux| !linux.cgroup_parent.is_empty()) {
        put("cgroupPath", Value::String(linux.cgroup_parent.clone()));
    }
    if let Some(dns) = &config.dns_config {
        put("dns", json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    let mut bandwidth = Map::new();
    for (rate, bits, burst) in [
        ("ingressRate", options.bandwidth.ingress, "ingressBurst"),
        ("egressRate", options.bandwidth.egress, "egressBurst"),
    ] {
        if let Some(bits) = bits {
            bandwidth.insert(rate.to_owned(), bits.into());
            bandwidth.insert(burst.to_owned(), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        put("bandwidth", Value::Object(bandwidth));
    }
    capabilities
}

/// The limits that the pod's annotations set, for each of its networks.
pub(super) fn bandwidth(config: &PodSandboxConfig) -> Result<Bandwidth, Error> {
    let limit = |annotation: &'static str| {
        let Some(text) = config.annotations.get(annotation) else { return Ok(None) };
        let bits = bits_per_second(text).filter(|bits| RATES.contains(bits));
        bits.map(Some).ok_or_else(|| {
            let reason = format!("{text:?} is no rate from 1k to 1P bits a second, as in 10M");
            Error::Networks { annotation, reason }
        })
    };
    Ok(Bandwidth { ingress: limit(INGRESS)?, egress: limit(EGRESS)? })
}

fn port(mapping: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.to_string(),
    });
    if let Some(host) = mapping.host_ip {
        value["hostIP"] = host.to_string().into();
    }
    value
}

/// A Kubernetes quantity (`1000`, `1.5M`, `1Gi`, `10e6`), rounded up to a whole number as the kubelet does.
fn bits_per_second(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (binary, decimal) = factor(suffix)?;
    let decimal = decimal.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(1_u128.checked_shl(binary)?)?;
    let power = 10_u128.checked_pow(decimal.unsigned_abs());
    let bits = match decimal < 0 {
        false => scaled.checked_mul(power?)?,
        // One that is too small for a number rounds up all the same.
        true => scaled.div_ceil(power.unwrap_or(u128::MAX)),
    };
    u64::try_from(bits).ok()
}

/// What a suffix stands for, as powers of two and of ten.
fn factor(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "" => (0, 0),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        exponent => (0, exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use berth_cni::{EndpointOptions, Protocol};

    use super::*;
    use crate::proto::runtime::v1::LinuxPodSandboxConfig;

    fn choice(options: EndpointOptions) -> Choice {
        Choice { network: "pods".into(), options }
    }

    #[test]
    fn capabilities_are_what_plugins_expect() {
        let ports = vec![PortMapping {
            protocol: Protocol::Udp,
            host_ip: Some("192.0.2.1".parse().unwrap()),
            host_port: 53,
            container_port: 5353,
        }];
        let options = EndpointOptions {
            ports,
            addresses: vec!["10.1.0.5".parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, 10]),
            ..EndpointOptions::default()
        };
        let config = PodSandboxConfig {
            annotations: [(INGRESS.to_owned(), "10M".to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let options = EndpointOptions { bandwidth: bandwidth(&config).unwrap(), ..options };
        let found = capabilities(&config, &choice(options));
        let expected = json!({
            "portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"}],
            "ips": ["10.1.0.5"],
            "mac": "02:00:00:00:00:0a",
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": BURST},
            // As containerd and CRI-O have them: for plugins that declare them.
            "io.kubernetes.cri.pod-annotations": {INGRESS: "10M"},
            "cgroupPath": "/kubepods/pod1",
        });
        assert_eq!(Value::Object(found), expected);
        assert!(capabilities(&PodSandboxConfig::default(), &choice(EndpointOptions::default())).is_empty());
    }

    #[test]
    fn rates_are_quantities_within_limits() {
        for (good, bits) in [
            ("1Mi", 1_048_576),
            ("1.5M", 1_500_000),
            ("0.5Gi", 536_870_912),
            (".5k", 500),
            ("2.k", 2_000),
            ("+10M", 10_000_000),
            ("10e6", 10_000_000),
            ("1E3", 1_000),
            ("1.0005k", 1_001),
            ("2500000m", 2_500),
            ("1000000000000n", 1_000),
            ("1Pi", 1 << 50),
            ("5e-400", 1),
        ] {
            assert_eq!(bits_per_second(good), Some(bits), "{good}");
        }
        for bad in [
            "",
            "fast",
            "10X",
            "1",
            "2P",
            "-1M",
            "99999999999999999999",
            ".",
            "M",
            "1.2.3M",
            "1e",
            "1e999",
            "1 M",
            "1KiB",
            "1Ei",
        ] {
            let config = PodSandboxConfig {
                annotations: [(EGRESS.to_owned(), bad.to_owned())].into(),
                ..PodSandboxConfig::default()
            };
            let error = bandwidth(&config).unwrap_err();
            assert!(error.to_string().contains(EGRESS), "{bad}: {error}");
        }
    }
}
