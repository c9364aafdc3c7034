//! `berth kill`.

use anyhow::{Context, Result};
use berth::proto::berth::v1::KillRequest;
use clap::Args;

use crate::client::Client;
use crate::failure::{self, Answer};
use crate::names::Names;
use crate::output;

/// Options of `kill`.
#[derive(Debug, Args)]
#[command(
    after_help = "The first process of a container gets the signal, and ignores it when it has no handler for it, as the first process \
    of a machine does; KILL and STOP always work. `berth stop` asks a container to end, and waits for it."
)]
pub(crate) struct Kill {
    /// Containers: ids, unique prefixes of them, names, or POD/NAME
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// The signal, by name or number, as in HUP, SIGUSR1, RTMIN+3 or 15
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
}

impl Kill {
    /// Signals one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.containers {
            let sent = self.send(&mut client, name).await;
            match sent.with_context(|| format!("sending {} to {name}", self.signal)) {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }

    async fn send(&self, client: &mut Client, name: &str) -> Result<()> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(name)?;
        let request = KillRequest { container_id: container.id.clone(), signal: self.signal.clone() };
        client.own_containers.kill(request).await.answer()?;
        Ok(())
    }
}
