//! Overlays: the commands as calls of the host's daemon, which keeps the records that the other hosts see.

use std::future::Future;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::answer::{
    self, Attached, CONFIGURATION, DECODING, DIFFERS, EXHAUSTED, Failure, REFUSED, TRY_AGAIN, UNAVAILABLE,
};
use crate::proto::{self, networks_client::NetworksClient};
use crate::request::{Command, Overlay, Request};

/// Longest time of one call: the daemon's own limits are below it.
const CALL: Duration = Duration::from_secs(60);
/// A network that another host made comes to this one within this time.
const ARRIVAL: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(50);
const DRIVER: &str = "overlay";

/// Carries it out.
pub(crate) async fn execute(request: &Request, overlay: &Overlay) -> Result<Value, Failure> {
    let daemon = Daemon { client: connect(overlay).await?, overlay };
    match request.command {
        Command::Add => daemon.add(request).await,
        Command::Del => daemon.delete(request).await,
        Command::Check => daemon.check(request).await,
        Command::Status => daemon.status().await,
        Command::Gc => daemon.collect(request).await,
        Command::Version => Ok(answer::versions(&request.version)),
    }
    .map_err(|failure| match (request.command, failure) {
        // Whatever it is: an ADD would fail now.
        (Command::Status, failure) => failure.with_code(UNAVAILABLE),
        (_, failure) => failure,
    })
}

async fn connect(overlay: &Overlay) -> Result<NetworksClient<Channel>, Failure> {
    let socket = overlay.socket.display();
    let failed = |error: tonic::transport::Error| {
        // The cause that lies deepest says what is wrong: it is the socket's.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let why = "overlays are kept by berthd (network.store = \"etcd\"): does it run on this host?";
        Failure::new(TRY_AGAIN, format!("asking the daemon at {socket}: {cause}"), why)
    };
    let channel = Endpoint::try_from(format!("unix:{socket}")).map_err(failed)?.timeout(CALL);
    Ok(NetworksClient::new(channel.connect().await.map_err(failed)?))
}

struct Daemon<'a> {
    client: NetworksClient<Channel>,
    overlay: &'a Overlay,
}

impl Daemon<'_> {
    async fn add(mut self, request: &Request) -> Result<Value, Failure> {
        let attach = attach_request(request, self.overlay);
        let mut attached = self.client.attach_namespace(attach.clone()).await;
        if is(&attached, Code::NotFound) && !self.overlay.subnets.is_empty() {
            self.create().await?;
            // Made by another host at the same time, it comes here a moment later.
            let client = self.client.clone();
            attached = patiently(|| {
                let (mut client, attach) = (client.clone(), attach.clone());
                async move { client.attach_namespace(attach).await }
            })
            .await;
        }
        let answer = attached.map_err(|status| self.failure(&status))?.into_inner();
        let attached = read(answer.endpoint.unwrap_or_default())?;
        Ok(answer::result(&request.version, &attached, &request.netns.to_string_lossy()))
    }

    async fn create(&mut self) -> Result<(), Failure> {
        let Overlay { network, subnets, internal, options, .. } = self.overlay;
        let subnets = subnets.iter().map(|options| proto::Subnet {
            subnet: options.subnet.to_string(),
            gateway: options.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            ip_range: options.range.map(|range| range.to_string()).unwrap_or_default(),
            aux_addresses: (1..)
                .zip(&options.reserved)
                .map(|(number, address): (u32, _)| (format!("reserved{number}"), address.to_string()))
                .collect(),
        });
        let network = proto::Network {
            name: network.clone(),
            driver: DRIVER.to_owned(),
            subnets: subnets.collect(),
            internal: *internal,
            options: options.clone().into_iter().collect(),
            ..proto::Network::default()
        };
        let request = proto::CreateNetworkRequest { network: Some(network), ipv6: false };
        match self.client.create_network(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.failure(&status)),
        }
    }

    async fn delete(mut self, request: &Request) -> Result<Value, Failure> {
        let detach = proto::DetachNamespaceRequest { attachment: request.sandbox.clone() };
        self.client.detach_namespace(detach).await.map_err(|status| self.failure(&status))?;
        Ok(Value::Null)
    }

    async fn check(mut self, request: &Request) -> Result<Value, Failure> {
        let check = proto::CheckNamespaceRequest {
            attachment: request.sandbox.clone(),
            network: self.overlay.network.clone(),
        };
        let answer = match self.client.check_namespace(check).await {
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {
                let what = "the attachment is not as it was made";
                return Err(Failure::new(DIFFERS, what, status.message()));
            }
            answer => answer.map_err(|status| self.failure(&status))?.into_inner(),
        };
        let attached = read(answer.endpoint.unwrap_or_default())?;
        answer::agree(request.previous.as_ref(), &attached.addresses).map(|()| Value::Null)
    }

    /// Whether an ADD would succeed: the network is there, or can be made.
    async fn status(mut self) -> Result<Value, Failure> {
        let name = self.overlay.network.clone();
        match self.client.inspect_network(proto::InspectNetworkRequest { name }).await {
            Err(status) if status.code() == Code::NotFound && !self.overlay.subnets.is_empty() => {
                Ok(Value::Null)
            }
            Err(status) => Err(self.failure(&status)),
            Ok(answer) => {
                let driver = answer.into_inner().network.unwrap_or_default().driver;
                if driver == DRIVER {
                    return Ok(Value::Null);
                }
                let what = format!("network {:?} is of driver {driver}", self.overlay.network);
                Err(Failure::new(CONFIGURATION, what, "name an overlay"))
            }
        }
    }

    async fn collect(mut self, request: &Request) -> Result<Value, Failure> {
        let collect = proto::CollectNamespacesRequest {
            owner: self.overlay.owner.clone(),
            network: self.overlay.network.clone(),
            valid: request.valid.clone(),
        };
        self.client.collect_namespaces(collect).await.map_err(|status| self.failure(&status))?;
        Ok(Value::Null)
    }

    fn failure(&self, status: &Status) -> Failure {
        let code = match status.code() {
            Code::InvalidArgument => CONFIGURATION,
            Code::ResourceExhausted => EXHAUSTED,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => TRY_AGAIN,
            _ => REFUSED,
        };
        let details = match status.code() {
            Code::NotFound => "make it by berth network create -d overlay, or give ipam.subnet",
            _ => "",
        };
        Failure::new(code, status.message(), details)
    }
}

fn is<T>(answer: &Result<T, Status>, code: Code) -> bool {
    answer.as_ref().err().is_some_and(|status| status.code() == code)
}

/// Asks again for as long as there is no such network, and it may still come.
async fn patiently<T, F: Future<Output = Result<T, Status>>>(ask: impl Fn() -> F) -> Result<T, Status> {
    let begin = Instant::now();
    loop {
        let answer = ask().await;
        if !is(&answer, Code::NotFound) || begin.elapsed() > ARRIVAL {
            return answer;
        }
        tokio::time::sleep(STEP).await;
    }
}

fn attach_request(request: &Request, overlay: &Overlay) -> proto::AttachNamespaceRequest {
    let options = &request.options;
    let port = |port: &berth_cni::PortMapping| proto::PublishedPort {
        protocol: port.protocol.to_string(),
        host_ip: port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
    };
    proto::AttachNamespaceRequest {
        attachment: request.sandbox.clone(),
        owner: overlay.owner.clone(),
        netns: request.netns.display().to_string(),
        network: overlay.network.clone(),
        driver: DRIVER.to_owned(),
        addresses: options.addresses.iter().map(ToString::to_string).collect(),
        mac: options.mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).unwrap_or_default(),
        interface: options.interface.clone(),
        aliases: overlay.aliases.clone(),
        ports: options.ports.iter().map(port).collect(),
        ingress_bandwidth: options.bandwidth.ingress.unwrap_or_default(),
        egress_bandwidth: options.bandwidth.egress.unwrap_or_default(),
    }
}

/// Reads what the daemon made.
fn read(endpoint: proto::Endpoint) -> Result<Attached, Failure> {
    let bad = |text: &str| Failure::new(DECODING, format!("the daemon answered address {text:?}"), "");
    let addresses = endpoint.addresses.iter().map(|text| text.parse::<IpNetwork>().map_err(|_| bad(text)));
    let gateways = endpoint.gateways.iter().map(|text| text.parse().map_err(|_| bad(text)));
    Ok(Attached {
        bridge: None,
        host_interface: Some(endpoint.host_interface).filter(|name| !name.is_empty()),
        addresses: addresses.collect::<Result<_, _>>()?,
        gateways: gateways.collect::<Result<_, _>>()?,
        interface: Some((endpoint.interface, endpoint.mac)),
        default_route: endpoint.default_route,
    })
}
