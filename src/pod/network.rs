//! A pod's place in the Container Network Model: one sandbox, joined to the default network.

use std::net::IpAddr;
use std::path::Path;

use berth_cni::{Controller, EndpointOptions, PortMapping, Protocol, SandboxSpec};

use super::error::Error;
use crate::proto::runtime::v1;

/// Joins the pod to `network`. Returns its addresses, the network's first family first.
pub(super) async fn attach(
    controller: &Controller,
    id: &str,
    netns: &Path,
    network: &str,
    ports: &[v1::PortMapping],
) -> Result<Vec<IpAddr>, Error> {
    let failed = |source| Error::Network { id: id.to_owned(), source };
    let ports = ports.iter().filter(|port| port.host_port != 0).map(published).collect::<Result<_, _>>()?;
    let spec = SandboxSpec { id: id.to_owned(), netns: netns.to_owned() };
    controller.create_sandbox(spec).await.map_err(failed)?;
    let options = EndpointOptions { ports, ..EndpointOptions::default() };
    let endpoint = controller.join(id, network, options).await.map_err(failed)?;
    Ok(endpoint.addresses.iter().map(ipnetwork::IpNetwork::ip).collect())
}

/// Takes the pod off all networks: its addresses and ports are free afterwards. A pod that has none is fine.
///
/// # Errors
/// Everything that could not be undone.
pub(super) async fn detach(controller: &Controller, id: &str) -> Result<(), Vec<Error>> {
    controller.delete_sandbox(id).await.map_err(|sources| {
        sources.into_iter().map(|source| Error::Network { id: id.to_owned(), source }).collect()
    })
}

fn published(mapping: &v1::PortMapping) -> Result<PortMapping, Error> {
    let described = || {
        let v1::PortMapping { host_ip, host_port, container_port, .. } = mapping;
        format!(
            "{host_ip}:{host_port} -> {container_port}/{}",
            mapping.protocol().as_str_name().to_lowercase()
        )
    };
    let bad = |reason| Error::Port { mapping: described(), reason };
    let port = |value: i32| u16::try_from(value).ok().filter(|port| *port != 0);
    Ok(PortMapping {
        protocol: match mapping.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        host_ip: match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| bad("the host address is not an IP address"))?),
        },
        host_port: port(mapping.host_port).ok_or_else(|| bad("the host port must be 1 to 65535"))?,
        container_port: port(mapping.container_port)
            .ok_or_else(|| bad("the container port must be 1 to 65535"))?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mapping(host_ip: &str, host_port: i32, container_port: i32) -> v1::PortMapping {
        v1::PortMapping { protocol: 1, host_ip: host_ip.into(), host_port, container_port }
    }

    #[test]
    fn port_mappings_are_checked() {
        let good = published(&mapping("::1", 53, 5353)).unwrap();
        assert_eq!((good.protocol, good.host_ip), (Protocol::Udp, Some("::1".parse().unwrap())));
        for (bad, word) in [
            (mapping("host", 1, 1), "IP address"),
            (mapping("", 70000, 1), "host port"),
            (mapping("", -1, 1), "host port"),
            (mapping("", 1, 0), "container port"),
        ] {
            let error = published(&bad).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("udp"), "{error}");
        }
    }
}
