//! A pod's place in the Container Network Model: one sandbox, joined to the networks it chooses.

mod capabilities;
mod choice;
mod naming;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use berth_cni::model::NetworkDriver;
use berth_cni::{EndpointOptions, Naming, PortMapping, Protocol, SandboxSpec};
use ipnetwork::IpNetwork;

use super::error::Error;
use super::shared::Shared;
use crate::cni;
use crate::container::spec;
use crate::error::chain;
use crate::proto::runtime::v1;

pub use choice::parse_mac;
pub(super) use naming::of_containers;

use choice::Choice;

/// The names that Multus goes by: its "thin" and its "thick" installation.
const MULTUS: [&str; 2] = ["multus", "multus-shim"];

/// The networks that a configuration asks for, held against what can be.
#[derive(Debug)]
pub(super) struct Plan {
    steps: Vec<Step>,
    naming: Naming,
}

/// One network to join.
#[derive(Debug)]
enum Step {
    BuiltIn(Choice),
    Plugins(Arc<cni::List>, Box<cni::Request>),
}

/// Reads what a pod's configuration says of networks. `None` for one on the host's network.
pub(super) fn plan(shared: &Shared, config: &v1::PodSandboxConfig) -> Result<Option<Plan>, Error> {
    if spec::host_network(config) {
        let named = config.annotations.get(choice::OURS).map_or("host", |text| text.trim());
        if !matches!(named, "" | "host") {
            let reason = "the pod is on the host's network and joins no other".to_owned();
            return Err(Error::Networks { annotation: choice::OURS, reason });
        }
        return Ok(None);
    }
    let list = shared.cni.default_list().map_err(Error::Plugins)?;
    let default = list.as_ref().map_or(shared.default_network.as_str(), |list| list.name.as_str());
    // Multus reads the annotation itself, as a plugin or as the client of a daemon.
    let multus = |list: &Arc<cni::List>| MULTUS.iter().any(|name| list.has_plugin(name));
    let additional = !list.as_ref().is_some_and(multus);
    let mut choices = choice::of(config, default, additional)?;
    let bandwidth = capabilities::bandwidth(config)?;
    choices.iter_mut().for_each(|choice| choice.options.bandwidth = bandwidth);
    let plugins =
        |name: &str| list.clone().filter(|list| list.name == name).or_else(|| shared.cni.list(name));
    let ports = &config.port_mappings;
    let ports = ports.iter().filter(|port| port.host_port != 0).map(published).collect::<Result<_, _>>()?;
    let publishes = |name: &str| match (plugins(name), shared.networks.network(name)) {
        (Some(list), _) => list.has_capability("portMappings"),
        (None, Some(network)) => network.publishes(),
        // One that is not there is left to the join, which says so.
        (None, None) => true,
    };
    choice::publish(&mut choices, ports, publishes)?;
    let step = |choice: Choice| match plugins(&choice.network) {
        Some(list) => {
            let request = cni::Request {
                interface: choice.options.interface.clone(),
                capabilities: capabilities::capabilities(config, &choice),
                ..cni::Request::default()
            };
            Step::Plugins(list, Box::new(request))
        }
        None => Step::BuiltIn(choice),
    };
    let naming = naming::of(config)?;
    Ok(Some(Plan { steps: choices.into_iter().map(step).collect(), naming }))
}

/// Joins the pod to its networks. Returns its addresses: those on the first network, its first family first.
pub(super) async fn attach(
    shared: &Shared,
    config: &v1::PodSandboxConfig,
    id: &str,
    netns: &Path,
    plan: Plan,
) -> Result<Vec<IpAddr>, Error> {
    let failed = |source| Error::Network { id: id.to_owned(), source };
    let controller = &shared.networks;
    let spec = SandboxSpec { id: id.to_owned(), netns: netns.to_owned() };
    controller.create_sandbox(spec).await.map_err(failed)?;
    let has_names =
        |step: &Step| matches!(step, Step::BuiltIn(choice) if controller.has_names(&choice.network));
    if !plan.steps.iter().any(|step| matches!(step, Step::BuiltIn(_))) {
        // Loopback is nobody else's.
        controller.join(id, "none", EndpointOptions::default()).await.map_err(failed)?;
    }
    let named = plan.steps.iter().any(has_names);
    if named {
        let elsewhere = plan.steps.iter().any(|step| matches!(step, Step::Plugins(..)));
        naming::tell(shared, id, plan.naming, elsewhere).await?;
    }
    let mut addresses: Option<Vec<IpAddr>> = None;
    for step in plan.steps {
        let joined = match step {
            Step::BuiltIn(choice) => {
                let endpoint = controller.join(id, &choice.network, choice.options).await.map_err(failed)?;
                endpoint.addresses.iter().map(ipnetwork::IpNetwork::ip).collect()
            }
            Step::Plugins(list, mut request) => {
                give_cidrs_back(shared).await;
                id.clone_into(&mut request.pod_id);
                netns.clone_into(&mut request.netns);
                request.arguments = capabilities::arguments(config, id);
                let attached = shared.cni.attach(&list, *request).await;
                attached.map_err(|source| Error::Cni { id: id.to_owned(), source })?.addresses
            }
        };
        addresses.get_or_insert(joined);
    }
    if named {
        naming::configure(shared, id).await?;
    }
    Ok(addresses.unwrap_or_default())
}

/// Joins a running pod to one more network. An empty interface name is chosen.
pub(super) async fn connect(
    shared: &Shared,
    config: &v1::PodSandboxConfig,
    id: &str,
    network: &str,
    mut options: EndpointOptions,
) -> Result<(), Error> {
    let controller = &shared.networks;
    let failed = |source| Error::Network { id: id.to_owned(), source };
    let sandbox = controller.sandbox(id).map_err(failed)?;
    let endpoints = sandbox.ok_or_else(|| Error::HostNetwork(id.to_owned()))?.endpoints;
    if let Some(present) = endpoints.iter().find(|endpoint| endpoint.network == network) {
        // Joining again is fine when it asks for the same, the interface's name left open.
        if options.interface.is_empty() {
            options.interface.clone_from(&present.interface);
        }
    } else if options.interface.is_empty() {
        // Those that plugins made are in the way as well.
        let others = shared.cni.interfaces(id);
        let taken = |name: &String| {
            endpoints.iter().any(|endpoint| endpoint.interface == *name) || others.contains(name)
        };
        options.interface =
            (0..).map(|number| format!("eth{number}")).find(|name| !taken(name)).unwrap_or_default();
    }
    options.bandwidth = capabilities::bandwidth(config)?;
    if controller.has_names(network) {
        naming::tell(shared, id, naming::of(config)?, shared.cni.owns(id)).await?;
    }
    controller.join(id, network, options).await.map_err(failed)?;
    naming::configure(shared, id).await
}

/// What became of the node's pod CIDRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodCidrs {
    /// The default network has them now.
    Changed,
    /// It had them already.
    Unchanged,
    /// They are not ours to use; the reason, for people.
    Ignored(String),
}

/// Makes the node's pod CIDRs the subnets of the default network, where that is a bridge of ours.
pub(super) async fn set_cidrs(shared: &Shared, cidrs: Vec<IpNetwork>) -> Result<PodCidrs, Error> {
    let name = &shared.default_network;
    if shared.cni.is_default() {
        return Ok(PodCidrs::Ignored(
            "CNI plugins attach pods, by subnets of their own configuration".to_owned(),
        ));
    }
    let Some(network) = shared.networks.network(name) else {
        return Ok(PodCidrs::Ignored(format!("the default network {name:?} does not exist")));
    };
    if !matches!(network.driver, NetworkDriver::Bridge(_)) {
        let driver = network.driver.name();
        return Ok(PodCidrs::Ignored(format!("the default network {name:?} is no bridge ({driver})")));
    }
    match shared.networks.change_subnets(name, Some(cidrs)).await.map_err(Error::PodCidrs)? {
        true => Ok(PodCidrs::Changed),
        false => Ok(PodCidrs::Unchanged),
    }
}

/// Gives the node's pod CIDRs back where plugins attach pods: they use them now, and two bridges with the same subnet would stand in each other's way.
async fn give_cidrs_back(shared: &Shared) {
    if !shared.networks.is_told() || !shared.cni.is_default() {
        return;
    }
    let name = shared.networks.default_network();
    match shared.networks.change_subnets(name, None).await {
        Ok(_) => tracing::info!(
            network = name,
            "plugins attach pods now: the network has its configured subnets again"
        ),
        Err(error) => {
            tracing::warn!(network = name, error = chain(&error), "giving the node's pod CIDRs back")
        }
    }
}

/// Takes a running pod off a network.
pub(super) async fn disconnect(shared: &Shared, id: &str, network: &str) -> Result<(), Error> {
    let controller = &shared.networks;
    let failed = |source| Error::Network { id: id.to_owned(), source };
    let sandbox = controller.sandbox(id).map_err(failed)?;
    let sandbox = sandbox.ok_or_else(|| Error::HostNetwork(id.to_owned()))?;
    if !sandbox.endpoints.iter().any(|endpoint| endpoint.network == network) {
        // An earlier call may have left, and then found no room for the resolver's configuration.
        naming::configure(shared, id).await?;
        return Err(Error::NotConnected { id: id.to_owned(), network: network.to_owned() });
    }
    controller.leave(id, network).await.map_err(|mut sources| {
        for more in sources.split_off(1.min(sources.len())) {
            tracing::warn!(pod = id, network, error = %more, "leaving a network");
        }
        sources.pop().map_or_else(|| Error::ShuttingDown, failed)
    })?;
    naming::configure(shared, id).await
}

/// The addresses of a pod: those on the network it joined first. `None`: as they were.
pub(super) fn addresses(shared: &Shared, id: &str) -> Option<Vec<IpAddr>> {
    if shared.cni.owns(id) {
        return None;
    }
    let endpoints = shared.networks.sandbox(id).ok()??.endpoints;
    let first = endpoints.iter().find(|endpoint| !endpoint.addresses.is_empty());
    Some(first.map(|e| e.addresses.iter().map(ipnetwork::IpNetwork::ip).collect()).unwrap_or_default())
}

/// Takes the pod off all networks: its addresses and ports are free afterwards. A pod that has none is fine. Returns
/// everything that could not be undone.
pub(super) async fn detach(shared: &Shared, id: &str) -> Vec<Error> {
    let plugins = shared.cni.detach(id).await.err().into_iter().flatten();
    let mut errors: Vec<_> = plugins.map(|source| Error::Cni { id: id.to_owned(), source }).collect();
    let left = shared.networks.delete_sandbox(id).await.err().into_iter().flatten();
    errors.extend(left.map(|source| Error::Network { id: id.to_owned(), source }));
    errors
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
