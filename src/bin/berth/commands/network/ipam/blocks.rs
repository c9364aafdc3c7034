//! `berth network ipam blocks` and `reclaim`: which node has which addresses of networks that span nodes.

use anyhow::{Context, Result};
use berth::proto::berth::v1::{ListBlocksRequest, ReclaimBlocksRequest};
use clap::Args;
use serde::Serialize;

use crate::client::Client;
use crate::failure::Answer;
use crate::options::listing::Format;
use crate::output;
use crate::output::table::Table;

/// Options of `network ipam blocks`.
#[derive(Debug, Args)]
pub(crate) struct Blocks {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockView {
    network: String,
    block: String,
    node: String,
    node_id: String,
    alive: bool,
    epoch: u64,
}

impl Blocks {
    pub(super) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.networks.list_blocks(ListBlocksRequest {}).await.answer();
        let blocks = answer.context("listing blocks of addresses")?.blocks;
        let blocks: Vec<_> = blocks
            .into_iter()
            .map(|block| BlockView {
                alive: !block.node.is_empty(),
                network: block.network,
                block: block.block,
                node: block.node,
                node_id: block.node_id,
                epoch: block.epoch,
            })
            .collect();
        if self.output == Format::Json {
            output::print_json(&blocks)?;
            return Ok(0);
        }
        let mut table = Table::new(&["NETWORK", "BLOCK", "NODE", "NODE ID", "EPOCH"]);
        for block in blocks {
            let node = if block.alive { block.node } else { "(gone)".to_owned() };
            let epoch = block.epoch.to_string();
            table.row([
                block.network.into(),
                block.block.into(),
                node.into(),
                block.node_id.into(),
                epoch.into(),
            ]);
        }
        output::print(&table.render(output::colours()))?;
        Ok(0)
    }
}

/// Options of `network ipam reclaim`.
#[derive(Debug, Args)]
pub(crate) struct Reclaim {
    /// The node's id, or the beginning of it: `network ipam blocks` shows it
    node: String,
    /// On this network only
    #[arg(long)]
    network: Option<String>,
}

impl Reclaim {
    pub(super) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let request =
            ReclaimBlocksRequest { node_id: self.node.clone(), network: self.network.unwrap_or_default() };
        let answer = client.networks.reclaim_blocks(request).await.answer();
        let reclaimed =
            answer.with_context(|| format!("reclaiming the addresses of node {:?}", self.node))?.reclaimed;
        for one in &reclaimed {
            output::print_line(&format!(
                "{}: blocks {}, single addresses {}",
                one.network, one.blocks, one.claims
            ))?;
        }
        if reclaimed.is_empty() {
            output::print_line("it has none there")?;
        }
        Ok(0)
    }
}
