//! Network namespaces of other runtimes, for the CNI plugin `berth-overlay`.

use berth_cni::{Bandwidth, Controller, EndpointOptions, GuestSpec, PortMapping, Protocol};
use tonic::Status;

use super::message;
use crate::cri::status_of;
use crate::proto::berth::v1::{
    AttachNamespaceRequest, AttachNamespaceResponse, CheckNamespaceRequest, CheckNamespaceResponse,
    CollectNamespacesRequest, CollectNamespacesResponse, DetachNamespaceResponse, PublishedPort,
};

pub(super) async fn attach(
    networks: &Controller,
    request: AttachNamespaceRequest,
) -> Result<AttachNamespaceResponse, Status> {
    let options = options(&request)?;
    let driver = networks.status(&request.network).map_err(status_of)?.network.driver.name();
    if !request.driver.is_empty() && request.driver != driver {
        let (network, wanted) = (&request.network, &request.driver);
        return Err(Status::failed_precondition(format!(
            "network {network:?} is of driver {driver}, not {wanted}"
        )));
    }
    if matches!(driver, "host" | "none") {
        return Err(Status::invalid_argument(format!("network {:?} is for pods only", request.network)));
    }
    let id = format!("cni-{}", request.attachment);
    let guest = GuestSpec { id: request.attachment, netns: request.netns.into(), owner: request.owner };
    let endpoint = networks.attach(guest, &request.network, options).await.map_err(status_of)?;
    Ok(AttachNamespaceResponse { endpoint: Some(message::endpoint(&id, None, &endpoint)) })
}

pub(super) async fn detach(
    networks: &Controller,
    attachment: &str,
) -> Result<DetachNamespaceResponse, Status> {
    networks.detach(attachment).await.map_err(first)?;
    Ok(DetachNamespaceResponse {})
}

pub(super) async fn check(
    networks: &Controller,
    request: CheckNamespaceRequest,
) -> Result<CheckNamespaceResponse, Status> {
    let CheckNamespaceRequest { attachment, network } = request;
    let endpoint = networks.verify_guest(&attachment, &network).await.map_err(status_of)?;
    let id = format!("cni-{attachment}");
    Ok(CheckNamespaceResponse { endpoint: Some(message::endpoint(&id, None, &endpoint)) })
}

pub(super) async fn collect(
    networks: &Controller,
    request: CollectNamespacesRequest,
) -> Result<CollectNamespacesResponse, Status> {
    let CollectNamespacesRequest { owner, network, valid } = request;
    let valid = valid.into_iter().collect();
    let (detached, errors) = networks.collect_guests(&owner, &network, &valid).await.map_err(status_of)?;
    if errors.is_empty() { Ok(CollectNamespacesResponse { detached }) } else { Err(first(errors)) }
}

/// The first of several errors is answered, the others are logged.
fn first(mut errors: Vec<berth_cni::Error>) -> Status {
    for error in errors.drain(1.min(errors.len())..) {
        tracing::warn!(%error, "detaching a network namespace");
    }
    errors.pop().map_or_else(|| Status::internal("detaching failed"), status_of)
}

/// Reads how a namespace is to be joined.
fn options(request: &AttachNamespaceRequest) -> Result<EndpointOptions, Status> {
    let limit = |bits: u64| Some(bits).filter(|bits| *bits != 0);
    let usual = EndpointOptions::default();
    Ok(EndpointOptions {
        addresses: message::addresses(&request.addresses)?,
        mac: message::mac(&request.mac)?,
        interface: if request.interface.is_empty() { usual.interface } else { request.interface.clone() },
        aliases: request.aliases.clone(),
        ports: request.ports.iter().map(port).collect::<Result<_, _>>()?,
        bandwidth: Bandwidth {
            ingress: limit(request.ingress_bandwidth),
            egress: limit(request.egress_bandwidth),
        },
        ..usual
    })
}

fn port(port: &PublishedPort) -> Result<PortMapping, Status> {
    let bad = |what: &str| Status::invalid_argument(format!("port {port:?}: {what}"));
    let number = |value: u32| u16::try_from(value).map_err(|_| bad("a port is at most 65535"));
    Ok(PortMapping {
        protocol: match port.protocol.as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(bad("the protocol is tcp, udp or sctp")),
        },
        host_ip: match port.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| bad("the host address is no IP address"))?),
        },
        host_port: number(port.host_port)?,
        container_port: number(port.container_port)?,
    })
}
