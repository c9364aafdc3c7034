//! `berth network ipam`: who has which address.

mod blocks;

use anyhow::{Context, Result, anyhow};
use berth::proto::berth::v1::{AddressPool, ListPoolsRequest, ReconcileNetworksRequest};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::client::Client;
use crate::failure::{self, Answer};
use crate::names::pod_name;
use crate::options::listing::Format;
use crate::output;
use crate::output::human;
use crate::output::table::Table;

/// What can be done with addresses.
#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// List address pools, or with -a every address that is leased
    Ls(Ls),
    /// Hold records and kernel against each other: remove what nobody owns, restore what is missing
    Gc(Gc),
    /// List which node has which addresses of networks that span nodes
    Blocks(blocks::Blocks),
    /// Take the addresses of a node that is gone for good from it, so that others can have them
    Reclaim(blocks::Reclaim),
}

impl Ipam {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        match self {
            Self::Ls(ls) => ls.execute(address).await,
            Self::Gc(gc) => gc.execute(address).await,
            Self::Blocks(blocks) => blocks.execute(address).await,
            Self::Reclaim(reclaim) => reclaim.execute(address).await,
        }
    }
}

/// Options of `network ipam ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Every leased address with its pod
    #[arg(short, long)]
    all: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolView {
    network: String,
    subnet: String,
    first: String,
    last: String,
    gateway: String,
    leases: Vec<LeaseView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeaseView {
    address: String,
    pod_id: String,
}

impl Ls {
    async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.networks.list_pools(ListPoolsRequest {}).await.answer();
        let pools = answer.context("listing address pools")?.pools;
        if self.output == Format::Json {
            output::print_json(&pools.into_iter().map(PoolView::from).collect::<Vec<_>>())?;
            return Ok(0);
        }
        let table = if self.all {
            let pods = client.pods().await?;
            let mut table = Table::new(&["NETWORK", "ADDRESS", "POD ID", "POD"]);
            for pool in &pools {
                for lease in &pool.leases {
                    let pod = pods.iter().find(|pod| pod.id == lease.pod_id).map_or("-", pod_name);
                    let id = human::short_id(&lease.pod_id, false);
                    table.row([
                        pool.network.as_str().into(),
                        lease.address.as_str().into(),
                        id.into(),
                        pod.into(),
                    ]);
                }
            }
            table
        } else {
            let mut table = Table::new(&["NETWORK", "SUBNET", "RANGE", "GATEWAY", "LEASED"]);
            for pool in &pools {
                table.row([
                    pool.network.as_str().into(),
                    pool.subnet.as_str().into(),
                    format!("{} - {}", pool.first, pool.last).into(),
                    pool.gateway.as_str().into(),
                    pool.leases.len().to_string().into(),
                ]);
            }
            table
        };
        output::print(&table.render(output::colours()))?;
        Ok(0)
    }
}

impl From<AddressPool> for PoolView {
    fn from(pool: AddressPool) -> Self {
        let lease = |lease: berth::proto::berth::v1::Lease| LeaseView {
            address: lease.address,
            pod_id: lease.pod_id,
        };
        Self {
            network: pool.network,
            subnet: pool.subnet,
            first: pool.first,
            last: pool.last,
            gateway: pool.gateway,
            leases: pool.leases.into_iter().map(lease).collect(),
        }
    }
}

/// Options of `network ipam gc`.
#[derive(Debug, Args)]
pub(crate) struct Gc {}

impl Gc {
    async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.networks.reconcile_networks(ReconcileNetworksRequest {}).await.answer();
        let report = answer.context("reconciling networks")?;
        let list = |names: &[String]| {
            if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
        };
        let lines = [
            format!("removed pods: {}{}", report.removed_pods.len(), list(&report.removed_pods)),
            format!(
                "removed interfaces: {}{}",
                report.removed_interfaces.len(),
                list(&report.removed_interfaces)
            ),
            format!("removed leases: {}", report.removed_leases),
            format!("removed host ports: {}", report.removed_ports),
            format!("rules removed: {}, restored: {}", report.removed_rules, report.restored_rules),
            format!(
                "restored endpoints: {}{}",
                report.restored_endpoints.len(),
                list(&report.restored_endpoints)
            ),
        ];
        output::print_line(&lines.join("\n"))?;
        failure::summary(report.errors.into_iter().map(|error| anyhow!(error)).collect())
    }
}
