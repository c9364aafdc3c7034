//! `berth network connect` and `disconnect`.

use anyhow::{Context, Result};
use berth::proto::berth::v1::{ConnectPodRequest, DisconnectPodRequest};
use clap::Args;

use crate::client::Client;
use crate::failure::Answer;
use crate::names::{Named, Names};

/// Options of `network connect`.
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// Address it is to have there (else one is chosen)
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// The same for IPv6
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// MAC of its interface (else it follows the address)
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    /// Name of its interface (else the first free of eth0, eth1, …)
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// One more name it has there
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// The network of the highest priority has the default route
    #[arg(long, value_name = "-50..50", default_value_t, allow_negative_numbers = true)]
    gw_priority: i32,
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The pod, or a container of it: id, unique prefix of one, or name
    #[arg(value_name = "POD")]
    pod: String,
}

impl Connect {
    /// Connects it.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let request = ConnectPodRequest {
            pod_id: pod_id(&mut client, &self.pod).await?,
            network: self.network.clone(),
            addresses: self.ip.into_iter().chain(self.ip6).collect(),
            mac: self.mac_address.unwrap_or_default(),
            interface: self.interface.unwrap_or_default(),
            aliases: self.alias,
            priority: self.gw_priority,
        };
        let connected = client.networks.connect_pod(request).await.answer();
        connected.with_context(|| format!("connecting {} to network {}", self.pod, self.network))?;
        Ok(0)
    }
}

/// Options of `network disconnect`.
#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// The network
    #[arg(value_name = "NETWORK")]
    network: String,
    /// The pod, or a container of it: id, unique prefix of one, or name
    #[arg(value_name = "POD")]
    pod: String,
}

impl Disconnect {
    /// Takes it off.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let pod_id = pod_id(&mut client, &self.pod).await?;
        let request = DisconnectPodRequest { pod_id, network: self.network.clone() };
        let taken = client.networks.disconnect_pod(request).await.answer();
        taken.with_context(|| format!("taking {} off network {}", self.pod, self.network))?;
        Ok(0)
    }
}

/// The pod that is meant, or the one of the container that is.
async fn pod_id(client: &mut Client, name: &str) -> Result<String> {
    let (containers, pods) = (client.containers().await?, client.pods().await?);
    let names = Names { containers: &containers, pods: &pods };
    Ok(match names.any(name)? {
        Named::Pod(pod) => pod.id.clone(),
        Named::Container(container) => container.pod_sandbox_id.clone(),
    })
}
