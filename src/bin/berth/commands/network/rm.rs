//! `berth network rm` and `prune`.

use anyhow::{Context, Result, anyhow};
use berth::proto::berth::v1::{PruneNetworksRequest, RemoveNetworkRequest};
use clap::Args;

use crate::client::Client;
use crate::failure::{self, Answer};
use crate::output;

/// Options of `network rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Networks
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
    /// No error when it is not there
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Removes one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.names {
            let request = RemoveNetworkRequest { name: name.clone() };
            match client.networks.remove_network(request).await.answer() {
                Ok(_) => output::print_line(name)?,
                Err(refusal) if self.force && refusal.code == tonic::Code::NotFound => {}
                Err(refusal) => failed.push(anyhow!(refusal).context(format!("removing network {name}"))),
            }
        }
        failure::summary(failed)
    }
}

/// Options of `network prune`.
#[derive(Debug, Args)]
pub(crate) struct Prune {}

impl Prune {
    /// Prints what it removed.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.networks.prune_networks(PruneNetworksRequest {}).await.answer();
        let answer = answer.context("removing unused networks")?;
        for name in answer.removed {
            output::print_line(&name)?;
        }
        failure::summary(answer.errors.into_iter().map(|error| anyhow!(error)).collect())
    }
}
