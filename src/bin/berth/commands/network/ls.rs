//! `berth network ls`.

use anyhow::Result;
use berth::proto::berth::v1::Network;
use clap::Args;

use super::inspect::NetworkView;
use crate::client::Client;
use crate::options::listing::Format;
use crate::output;
use crate::output::table::{Cell, Table, Tone};

/// Options of `network ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print names only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

impl Ls {
    /// Lists them by name.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let networks = super::all(&mut Client::connect(address).await?).await?;
        if self.quiet {
            let names = networks.iter().map(|network| format!("{}\n", network.name));
            output::print(&names.collect::<String>())?;
        } else if self.output == Format::Json {
            let views = networks.iter().map(|network| NetworkView::new(network, None));
            output::print_json(&views.collect::<Vec<_>>())?;
        } else {
            output::print(&table(&networks).render(output::colours()))?;
        }
        Ok(0)
    }
}

fn table(networks: &[Network]) -> Table {
    let mut table = Table::new(&["NAME", "DRIVER", "SUBNETS", "ON", "MODE"]);
    for network in networks {
        let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.subnet.as_str()).collect();
        let option = |name: &str| network.options.get(name).cloned().unwrap_or_default();
        let on = [option("parent"), option("bridge")].concat();
        let mode =
            if network.internal && network.driver != "none" { "internal".to_owned() } else { option("mode") };
        let tone = if network.built_in { Tone::Dim } else { Tone::Plain };
        table.row([
            Cell::toned(&network.name, tone),
            network.driver.as_str().into(),
            subnets.join(", ").into(),
            on.into(),
            mode.into(),
        ]);
    }
    table
}
