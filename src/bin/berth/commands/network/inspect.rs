//! `berth network inspect`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use berth::proto::berth::v1::{Endpoint, InspectNetworkResponse, Network, RemoteEndpoint};
use clap::Args;
use serde::Serialize;

use crate::client::Client;
use crate::failure;
use crate::output::{self, path::Template};

/// Options of `network inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Networks
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
    /// Print parts only, as `berth inspect` has it
    #[arg(short, long, value_name = "PATH")]
    format: Option<String>,
}

impl Inspect {
    /// Prints a list with what was found; what was not is an error after that.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let format = self.format.as_deref().map(Template::parse).transpose().context("--format")?;
        let mut client = Client::connect(address).await?;
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for name in &self.names {
            match super::look(&mut client, name).await.with_context(|| format!("inspecting network {name}")) {
                Ok(answer) => found.push(NetworkView::from(answer)),
                Err(error) => failed.push(error),
            }
        }
        let Some(format) = format else {
            output::print_json(&found)?;
            return failure::summary(failed);
        };
        for network in &found {
            output::print_line(&format.apply(&serde_json::to_value(network)?).context("--format")?)?;
        }
        failure::summary(failed)
    }
}

/// A network as JSON shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkView {
    name: String,
    driver: String,
    built_in: bool,
    internal: bool,
    attachable: bool,
    subnets: Vec<SubnetView>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<EndpointView>>,
    /// On other nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remote_endpoints: Vec<RemoteView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SubnetView {
    subnet: String,
    gateway: String,
    ip_range: String,
    aux_addresses: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointView {
    pod_id: String,
    pod: String,
    namespace: String,
    interface: String,
    addresses: Vec<String>,
    mac: String,
    mtu: u32,
    gateways: Vec<String>,
    default_route: bool,
    priority: i32,
    aliases: Vec<String>,
    host_interface: String,
    ports: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RemoteView {
    node: String,
    node_address: String,
    pod_id: String,
    pod: String,
    namespace: String,
    containers: Vec<String>,
    addresses: Vec<String>,
    mac: String,
    aliases: Vec<String>,
}

impl From<InspectNetworkResponse> for NetworkView {
    fn from(answer: InspectNetworkResponse) -> Self {
        let mut view = Self::new(&answer.network.unwrap_or_default(), Some(&answer.endpoints));
        view.remote_endpoints = answer.remote_endpoints.into_iter().map(RemoteView::from).collect();
        view
    }
}

impl From<RemoteEndpoint> for RemoteView {
    fn from(endpoint: RemoteEndpoint) -> Self {
        Self {
            node: endpoint.node,
            node_address: endpoint.node_address,
            pod_id: endpoint.pod_id,
            pod: endpoint.pod_name,
            namespace: endpoint.pod_namespace,
            containers: endpoint.containers,
            addresses: endpoint.addresses,
            mac: endpoint.mac,
            aliases: endpoint.aliases,
        }
    }
}

impl NetworkView {
    pub(super) fn new(network: &Network, endpoints: Option<&[Endpoint]>) -> Self {
        let sorted = |map: &std::collections::HashMap<String, String>| map.clone().into_iter().collect();
        let subnets = network.subnets.iter().map(|subnet| SubnetView {
            subnet: subnet.subnet.clone(),
            gateway: subnet.gateway.clone(),
            ip_range: subnet.ip_range.clone(),
            aux_addresses: sorted(&subnet.aux_addresses),
        });
        Self {
            name: network.name.clone(),
            driver: network.driver.clone(),
            built_in: network.built_in,
            internal: network.internal,
            attachable: network.attachable,
            subnets: subnets.collect(),
            options: sorted(&network.options),
            labels: sorted(&network.labels),
            endpoints: endpoints.map(|endpoints| endpoints.iter().cloned().map(EndpointView::from).collect()),
            remote_endpoints: Vec::new(),
        }
    }
}

impl From<Endpoint> for EndpointView {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            pod_id: endpoint.pod_id,
            pod: endpoint.pod_name,
            namespace: endpoint.pod_namespace,
            interface: endpoint.interface,
            addresses: endpoint.addresses,
            mac: endpoint.mac,
            mtu: endpoint.mtu,
            gateways: endpoint.gateways,
            default_route: endpoint.default_route,
            priority: endpoint.priority,
            aliases: endpoint.aliases,
            host_interface: endpoint.host_interface,
            ports: endpoint.ports,
        }
    }
}
