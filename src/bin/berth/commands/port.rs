//! `berth port`.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{PodSandboxStatusResponse, Protocol};
use clap::Args;
use serde::Deserialize;

use crate::client::Client;
use crate::names::{Named, Names};
use crate::output;
use crate::view::details;

/// Options of `port`.
#[derive(Debug, Args)]
pub(crate) struct Port {
    /// A container or pod: id, unique prefix of it, name, or POD/NAME
    #[arg(value_name = "NAME")]
    name: String,
    /// Only where this port of it is published, as in 80 or 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// A published port, as the pod's configuration in a verbose status has it: what is not set is left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Published {
    protocol: i32,
    container_port: u16,
    host_port: u16,
    host_ip: String,
}

impl Published {
    /// As in `80/tcp`.
    fn inside(&self) -> String {
        let protocol = Protocol::try_from(self.protocol).unwrap_or_default();
        format!("{}/{}", self.container_port, protocol.as_str_name().to_ascii_lowercase())
    }

    /// Where the host listens for a pod of these families, as in `0.0.0.0:8080`.
    fn outside(&self, families: Families) -> Vec<String> {
        let address = |ip: &str| match ip.contains(':') {
            true => format!("[{ip}]:{}", self.host_port),
            false => format!("{ip}:{}", self.host_port),
        };
        if !self.host_ip.is_empty() {
            return vec![address(&self.host_ip)];
        }
        let any = [(families.v4, "0.0.0.0"), (families.v6, "::")];
        any.into_iter().filter(|(has, _)| *has).map(|(_, ip)| address(ip)).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Port {
    /// Lists where the ports of a pod, those of its containers among them, are published on this node.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let wanted = self.port.as_deref().map(wanted).transpose()?;
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let names = Names { containers: &containers, pods: &pods };
        let pod = match names.any(&self.name)? {
            Named::Pod(pod) => pod,
            Named::Container(container) => {
                names.pod_of(container).with_context(|| format!("{} has no pod any more", self.name))?
            }
        };
        let status = client.pod_status(&pod.id, true).await;
        let (published, families) =
            read(status.with_context(|| format!("asking for the ports of {}", self.name))?);
        let mut lines = String::new();
        for one in &published {
            let inside = one.inside();
            for outside in one.outside(families) {
                match &wanted {
                    None => lines.push_str(&format!("{inside} -> {outside}\n")),
                    Some(wanted) if *wanted == inside => lines.push_str(&format!("{outside}\n")),
                    Some(_) => {}
                }
            }
        }
        if let (Some(wanted), true) = (&wanted, lines.is_empty()) {
            bail!(
                "{wanted} of {} is not published on this node: `berth port {}` lists what is",
                self.name,
                self.name
            );
        }
        output::print(&lines)?;
        Ok(0)
    }
}

/// `80`, `80/udp` as [`Published::inside`] writes it.
fn wanted(text: &str) -> Result<String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    match port.parse::<u16>() {
        Ok(port) if port > 0 && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => {
            Ok(format!("{port}/{protocol}"))
        }
        _ => bail!("`{text}` is no port: write it like 80 or 53/udp"),
    }
}

fn read(response: PodSandboxStatusResponse) -> (Vec<Published>, Families) {
    let network = response.status.and_then(|status| status.network).unwrap_or_default();
    let addresses: Vec<IpAddr> = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let families =
        Families { v4: addresses.iter().any(IpAddr::is_ipv4), v6: addresses.iter().any(IpAddr::is_ipv6) };
    let mut info = details::info(response.info);
    let ports = info.get_mut("info").map(|info| info["config"]["port_mappings"].take()).unwrap_or_default();
    let mut ports: Vec<Published> = serde_json::from_value(ports).unwrap_or_default();
    ports.retain(|port| port.host_port != 0);
    (ports, families)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth::proto::runtime::v1::{PodIp, PodSandboxNetworkStatus, PodSandboxStatus};

    use super::*;

    #[test]
    fn a_line_for_each_family() {
        let info = r#"{"config":{"port_mappings":[{"container_port":80,"host_port":8080},
            {"container_port":53,"host_port":53,"protocol":1,"host_ip":"::1"},{"container_port":90}]}}"#;
        let network = PodSandboxNetworkStatus {
            ip: "10.85.0.2".into(),
            additional_ips: vec![PodIp { ip: "fd85::2".into() }],
        };
        let response = PodSandboxStatusResponse {
            status: Some(PodSandboxStatus { network: Some(network), ..Default::default() }),
            info: [("info".to_owned(), info.to_owned())].into(),
            ..Default::default()
        };
        let (ports, families) = read(response);
        let shown: Vec<_> = ports.iter().map(|port| (port.inside(), port.outside(families))).collect();
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            shown,
            [
                ("80/tcp".to_owned(), strings(&["0.0.0.0:8080", "[::]:8080"])),
                ("53/udp".to_owned(), strings(&["[::1]:53"])),
            ]
        );
        assert!(read(PodSandboxStatusResponse::default()).0.is_empty());
    }

    #[test]
    fn ports_are_asked_for_by_number_and_protocol() {
        assert_eq!(wanted("80").unwrap(), "80/tcp");
        assert_eq!(wanted("53/UDP").unwrap(), "53/udp");
        for text in ["", "0", "http", "80/x", "80/", "99999"] {
            assert!(wanted(text).is_err(), "{text}");
        }
    }
}
