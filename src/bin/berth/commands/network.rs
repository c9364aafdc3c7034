//! `berth network`: networks that people make, in the words Docker's users know.

mod connect;
mod create;
mod diagram;
mod inspect;
mod ipam;
mod ls;
mod rm;

use anyhow::{Context, Result};
use berth::proto::berth::v1::{
    Endpoint, InspectNetworkRequest, InspectNetworkResponse, ListNetworksRequest, Network as Message,
};
use clap::Subcommand;

use crate::client::Client;
use crate::failure::Answer;

/// What can be done with networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Make a network
    Create(create::Create),
    /// List networks
    #[command(alias = "list")]
    Ls(ls::Ls),
    /// Show all there is to know of networks, and who is attached to them, as JSON
    Inspect(inspect::Inspect),
    /// Remove networks that no pod is attached to
    #[command(alias = "remove")]
    Rm(rm::Rm),
    /// Remove all networks that no pod is attached to
    Prune(rm::Prune),
    /// Connect a running pod to a network
    Connect(connect::Connect),
    /// Take a running pod off a network
    Disconnect(connect::Disconnect),
    /// Draw the node, its networks and its pods as SVG
    Diagram(diagram::Diagram),
    /// Address pools and leases
    #[command(subcommand)]
    Ipam(ipam::Ipam),
}

impl Network {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        match self {
            Self::Create(create) => create.execute(address).await,
            Self::Ls(ls) => ls.execute(address).await,
            Self::Inspect(inspect) => inspect.execute(address).await,
            Self::Rm(rm) => rm.execute(address).await,
            Self::Prune(prune) => prune.execute(address).await,
            Self::Connect(connect) => connect.execute(address).await,
            Self::Disconnect(disconnect) => disconnect.execute(address).await,
            Self::Diagram(diagram) => diagram.execute(address).await,
            Self::Ipam(ipam) => ipam.execute(address).await,
        }
    }
}

async fn all(client: &mut Client) -> Result<Vec<Message>> {
    let answer = client.networks.list_networks(ListNetworksRequest {}).await.answer();
    Ok(answer.context("listing networks")?.networks)
}

async fn one(client: &mut Client, name: &str) -> Result<(Message, Vec<Endpoint>)> {
    let InspectNetworkResponse { network, endpoints, .. } = look(client, name).await?;
    Ok((network.unwrap_or_default(), endpoints))
}

async fn look(client: &mut Client, name: &str) -> Result<InspectNetworkResponse> {
    let request = InspectNetworkRequest { name: name.to_owned() };
    Ok(client.networks.inspect_network(request).await.answer()?)
}

/// An inspected network as JSON shows it.
pub(crate) fn view(answer: InspectNetworkResponse) -> impl serde::Serialize {
    inspect::NetworkView::from(answer)
}
