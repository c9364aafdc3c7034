//! Networks as messages, both ways.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use berth_cni::model::SubnetOptions;
use berth_cni::{EndpointOptions, NetworkRequest, NetworkStatus, PoolStatus, Report};
use tonic::Status;

use crate::error::chain;
use crate::pod::{PodSnapshot, parse_mac};
use crate::proto::berth::v1::{
    AddressBlock, AddressPool, ConnectPodRequest, CreateNetworkRequest, Endpoint, Lease, Network,
    ReclaimedBlocks, ReconcileNetworksResponse, RemoteEndpoint, Subnet,
};

// === Requests ===

/// Reads what is to be made.
pub(super) fn network_request(request: CreateNetworkRequest) -> Result<NetworkRequest, Status> {
    let network = request.network.ok_or_else(|| Status::invalid_argument("network is missing"))?;
    let subnets = network.subnets.iter().map(subnet_options).collect::<Result<_, _>>()?;
    Ok(NetworkRequest {
        name: network.name,
        driver: network.driver,
        subnets,
        ipv6: request.ipv6,
        internal: network.internal,
        attachable: network.attachable,
        labels: network.labels.into_iter().collect(),
        options: network.options.into_iter().collect(),
    })
}

fn subnet_options(subnet: &Subnet) -> Result<SubnetOptions, Status> {
    let auxiliary: BTreeMap<String, IpAddr> = subnet
        .aux_addresses
        .iter()
        .map(|(name, address)| Ok((name.clone(), parse("aux_addresses", address)?)))
        .collect::<Result<_, Status>>()?;
    Ok(SubnetOptions {
        range: optional("ip_range", &subnet.ip_range)?,
        gateway: optional("gateway", &subnet.gateway)?,
        auxiliary,
        ..SubnetOptions::new(parse("subnet", &subnet.subnet)?)
    })
}

/// Reads how a pod is to be joined.
pub(super) fn endpoint_options(request: &ConnectPodRequest) -> Result<EndpointOptions, Status> {
    let priority = i8::try_from(request.priority)
        .map_err(|_| Status::invalid_argument(format!("priority {}: -50 to 50", request.priority)))?;
    Ok(EndpointOptions {
        addresses: addresses(&request.addresses)?,
        mac: mac(&request.mac)?,
        interface: request.interface.clone(),
        aliases: request.aliases.clone(),
        priority,
        ..EndpointOptions::default()
    })
}

/// Static addresses.
pub(super) fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    texts.iter().map(|text| parse("addresses", text)).collect()
}

/// A MAC, or an empty text.
pub(super) fn mac(text: &str) -> Result<Option<[u8; 6]>, Status> {
    match text {
        "" => Ok(None),
        text => parse_mac(text).map(Some).ok_or_else(|| {
            Status::invalid_argument(format!("mac {text:?}: six bytes, as in 02:42:ac:11:00:02"))
        }),
    }
}

fn optional<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

fn parse<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{field} {text:?}: {error}")))
}

// === Answers ===

/// A network.
pub(super) fn network(status: &NetworkStatus) -> Network {
    let network = &status.network;
    let subnets = network.subnets().iter().map(|options| {
        let pool = status.pools.iter().find(|pool| pool.subnet == options.subnet);
        Subnet {
            subnet: options.subnet.to_string(),
            gateway: pool.map(|pool| pool.gateway.to_string()).unwrap_or_default(),
            ip_range: options.range.map(|range| range.to_string()).unwrap_or_default(),
            aux_addresses: options
                .auxiliary
                .iter()
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect(),
        }
    });
    Network {
        name: network.name.clone(),
        driver: network.driver.name().to_owned(),
        subnets: subnets.collect(),
        internal: network.internal(),
        attachable: network.attachable,
        labels: network.labels.clone().into_iter().collect(),
        options: network.driver.options().into_iter().collect(),
        built_in: status.built_in,
    }
}

/// Who is attached, and how.
pub(super) fn endpoint(id: &str, pod: Option<&PodSnapshot>, endpoint: &berth_cni::Endpoint) -> Endpoint {
    let metadata = pod.and_then(|pod| pod.config.metadata.as_ref());
    let mac = endpoint.mac.map(mac_text);
    Endpoint {
        pod_id: id.to_owned(),
        pod_name: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
        pod_namespace: metadata.map(|metadata| metadata.namespace.clone()).unwrap_or_default(),
        interface: endpoint.interface.clone(),
        addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
        mac: mac.unwrap_or_default(),
        mtu: endpoint.mtu,
        aliases: endpoint.aliases.clone(),
        gateways: endpoint.gateways.iter().map(ToString::to_string).collect(),
        default_route: endpoint.default_route,
        priority: endpoint.priority.into(),
        host_interface: endpoint.host_interface.clone().unwrap_or_default(),
        ports: endpoint.ports.iter().map(port).collect(),
    }
}

/// A pod of another node.
pub(super) fn remote_endpoint(endpoint: berth_cni::overlay::RemoteEndpoint) -> RemoteEndpoint {
    RemoteEndpoint {
        node: endpoint.host,
        node_address: endpoint.host_address.to_string(),
        pod_id: endpoint.sandbox,
        pod_name: endpoint.names.name,
        pod_namespace: endpoint.names.namespace,
        containers: endpoint.names.containers,
        addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
        mac: mac_text(endpoint.mac),
        aliases: endpoint.aliases,
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn port(mapping: &berth_cni::PortMapping) -> String {
    let host = match mapping.host_ip {
        None => "*".to_owned(),
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(address) => address.to_string(),
    };
    format!("{host}:{}->{}/{}", mapping.host_port, mapping.container_port, mapping.protocol)
}

/// A pool and who has its addresses.
pub(super) fn pool(status: &PoolStatus) -> AddressPool {
    let pool = &status.pool;
    AddressPool {
        network: pool.network.clone(),
        subnet: pool.subnet.to_string(),
        first: pool.range.0.to_string(),
        last: pool.range.1.to_string(),
        gateway: pool.gateway.to_string(),
        leases: status
            .leases
            .iter()
            .map(|(address, lease)| Lease { address: address.to_string(), pod_id: lease.sandbox.clone() })
            .collect(),
    }
}

/// Addresses of a node.
pub(super) fn block(block: berth_cni::HeldBlock) -> AddressBlock {
    AddressBlock {
        network: block.network,
        block: block.block.to_string(),
        node_id: block.host,
        node: block.host_name.unwrap_or_default(),
        epoch: block.epoch,
    }
}

/// What was taken from a node.
pub(super) fn reclaimed(reclaimed: berth_cni::Reclaimed) -> ReclaimedBlocks {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    ReclaimedBlocks {
        network: reclaimed.network,
        blocks: count(reclaimed.blocks),
        claims: count(reclaimed.claims),
    }
}

/// What reconciliation found and did.
pub(super) fn report(report: Report) -> ReconcileNetworksResponse {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    ReconcileNetworksResponse {
        removed_pods: report.removed_sandboxes,
        removed_interfaces: report.removed_links,
        removed_leases: count(report.removed_leases),
        removed_ports: count(report.removed_ports),
        removed_rules: count(report.removed_elements),
        restored_rules: count(report.restored_elements),
        restored_endpoints: report
            .restored_endpoints
            .iter()
            .map(|(pod, network)| format!("{pod}@{network}"))
            .collect(),
        errors: report.errors.iter().map(|error| chain(error)).collect(),
    }
}
