//! `berth wait`.

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::client::Client;
use crate::failure;
use crate::logs::{self, follow::Start, print::Printer};
use crate::names::Names;
use crate::output;

/// Options of `wait`.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 0 when all have ended, whatever their exit codes are.")]
pub(crate) struct Wait {
    /// Containers: ids, unique prefixes of them, names, or POD/NAME
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    /// Waits for all of them at once; prints their exit codes in the order in which they were named.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        // What the names mean now: one that is taken by another container meanwhile is another container.
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let names = Names { containers: &containers, pods: &pods };
        let waits = self.containers.iter().map(|name| {
            let (mut client, container) = (client.clone(), names.container(name));
            async move { until_ended(&mut client, &container?.id).await }
        });
        let mut failed = Vec::new();
        for (name, ended) in self.containers.iter().zip(futures::future::join_all(waits).await) {
            match ended.with_context(|| format!("waiting for {name}")) {
                Ok(code) => output::print_line(&code.to_string())?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }
}

async fn until_ended(client: &mut Client, id: &str) -> Result<i32> {
    let ended = logs::until_ended(client, id, None, Start::Beginning, &mut Printer::default()).await?;
    match ended {
        Some(status) => Ok(status.exit_code),
        None => bail!("it was removed, and its exit code with it"),
    }
}
