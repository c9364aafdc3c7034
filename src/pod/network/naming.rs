//! What a pod is called on networks that people made, and its resolver's configuration there.
//!
//! | name | where from |
//! | --- | --- |
//! | the pod's | its metadata; the host name as well where it differs |
//! | its containers' | their metadata, while they are not ended |
//! | aliases | of the endpoint: `berth network connect --alias`, `aliases` in `berth.dev/networks` |
//! | ports, for SRV | annotation `berth.dev/ports: http=8080,dns=53/udp`, and declared ports by their numbers |

use std::collections::BTreeSet;

use berth_cni::{NamedPort, Naming, Protocol, resolver};

use super::Shared;
use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::error::Error;
use crate::pod::files::Directory;
use crate::proto::runtime::v1::{self, PodSandboxConfig};

/// Ports by name.
const PORTS: &str = "berth.dev/ports";
/// More is a mistake.
const PORTS_MAX: usize = 256;

/// What the configuration says; servers are found later, but whose loopback they may be on is said here.
pub(super) fn of(config: &PodSandboxConfig) -> Result<Naming, Error> {
    let metadata = config.metadata.as_ref().map(|metadata| metadata.name.as_str());
    let mut names = Vec::new();
    for name in metadata.into_iter().chain([config.hostname.as_str()]) {
        // One that can't be asked for is no reason to refuse a pod.
        if resolver::is_name(name) && !names.contains(&name.to_owned()) {
            names.push(name.to_owned());
        }
    }
    let mut ports = config.annotations.get(PORTS).map_or(Ok(Vec::new()), |text| named_ports(text))?;
    let numbered: BTreeSet<(u16, u8)> = config
        .port_mappings
        .iter()
        .filter_map(|mapping| Some((u16::try_from(mapping.container_port).ok()?, protocol(mapping).number())))
        .chain(ports.iter().map(|port| (port.port, port.protocol.number())))
        .collect();
    for (port, number) in numbered.into_iter().take(PORTS_MAX.saturating_sub(ports.len())) {
        let protocol =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|each| each.number() == number);
        ports.extend(protocol.map(|protocol| NamedPort { name: port.to_string(), protocol, port }));
    }
    // Without any it gets those of the host.
    let own_upstream = config.dns_config.as_ref().is_some_and(|dns| !dns.servers.is_empty());
    Ok(Naming { names, ports, own_upstream, ..Naming::default() })
}

fn protocol(mapping: &v1::PortMapping) -> Protocol {
    match mapping.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Sctp => Protocol::Sctp,
    }
}

/// `NAME=PORT[/PROTOCOL],…`
fn named_ports(text: &str) -> Result<Vec<NamedPort>, Error> {
    let refuse = |reason: String| Error::Networks { annotation: PORTS, reason };
    let parse = |part: &str| {
        let (name, rest) = part.split_once('=')?;
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        resolver::is_name(name).then(|| NamedPort { name: name.to_owned(), protocol, port })
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let ports: Vec<_> = parts
        .map(|part| {
            parse(part).ok_or_else(|| refuse(format!("{part:?} is not NAME=PORT or NAME=PORT/tcp|udp|sctp")))
        })
        .collect::<Result<_, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(refuse(format!("{} ports, and {PORTS_MAX} is the most", ports.len())));
    }
    Ok(ports)
}

/// Tells the resolvers what the pod is called, before it joins a network with names.
/// `elsewhere` says whether others make ways out of it.
pub(super) async fn tell(
    shared: &Shared,
    id: &str,
    mut naming: Naming,
    elsewhere: bool,
) -> Result<(), Error> {
    let directory = Directory::new(&shared.tools.state, id);
    let text = blocking(move || directory.resolver_configuration()).await?;
    naming.upstream = resolver::servers(&text);
    naming.other_routes = elsewhere;
    let named = shared.networks.name_sandbox(id, naming).await;
    named.map_err(|source| Error::Network { id: id.to_owned(), source })
}

/// Makes the pod's resolver configuration name its own resolver, if it has one, or what it named before.
pub(super) async fn configure(shared: &Shared, id: &str) -> Result<(), Error> {
    let own = shared.networks.has_resolver(id);
    let directory = Directory::new(&shared.tools.state, id);
    blocking(move || directory.resolve(own)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::ShuttingDown)?
}

/// The names of a pod's containers that are not ended.
pub(in crate::pod) fn of_containers<'a>(
    containers: impl Iterator<Item = &'a ContainerSnapshot>,
) -> Vec<String> {
    let alive = containers.filter(|container| !matches!(container.state, ContainerState::Exited { .. }));
    let names = alive.filter_map(|container| Some(container.config.metadata.as_ref()?.name.clone()));
    names.filter(|name| resolver::is_name(name)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::runtime::v1::PodSandboxMetadata;

    fn config(ports: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web-0".into(), ..Default::default() }),
            hostname: "web".into(),
            annotations: [(PORTS.to_owned(), ports.to_owned())].into(),
            port_mappings: vec![v1::PortMapping { container_port: 53, protocol: 1, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_called_by_name_and_host_name() {
        let naming = of(&config("http=8080, dns=53/udp")).unwrap();
        assert_eq!(naming.names, ["web-0", "web"]);
        let ports: Vec<_> = naming
            .ports
            .iter()
            .map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol))
            .collect();
        assert_eq!(ports, ["http:8080/tcp", "dns:53/udp", "53:53/udp", "8080:8080/tcp"]);
        let odd = PodSandboxConfig { hostname: "-".into(), ..Default::default() };
        assert!(of(&odd).unwrap().names.is_empty());
    }

    #[test]
    fn servers_are_the_pods_own_where_its_configuration_names_some() {
        let own = |dns_config: Option<v1::DnsConfig>| {
            of(&PodSandboxConfig { dns_config, ..Default::default() }).unwrap().own_upstream
        };
        let servers = |servers: &[&str]| v1::DnsConfig {
            servers: servers.iter().map(ToString::to_string).collect(),
            searches: vec!["example".into()],
            ..Default::default()
        };
        assert!(own(Some(servers(&["127.0.0.1"]))));
        assert!(!own(Some(servers(&[]))) && !own(None));
    }

    #[test]
    fn ports_that_make_no_sense_are_refused() {
        for bad in ["http", "http=", "http=0", "http=70000", "http=80/icmp", "=80", "a b=80"] {
            let error = of(&config(bad)).unwrap_err().to_string();
            assert!(error.contains(PORTS) && error.contains(bad), "{error}");
        }
    }
}
