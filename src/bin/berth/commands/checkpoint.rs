//! `berth checkpoint`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use berth::proto::runtime::v1::CheckpointContainerRequest;
use clap::Args;

use crate::client::Client;
use crate::failure::Answer;
use crate::names::Names;
use crate::options::duration;
use crate::output;

/// Options of `checkpoint`.
#[derive(Debug, Args)]
#[command(
    after_help = "The container runs on. Its memory is in the archive, with all secrets in it: only root can read the file. \
    A container whose image is the archive's path continues it (`crictl create`); the node needs criu for both."
)]
pub(crate) struct Checkpoint {
    /// The container: id, unique prefix of it, name, or POD/NAME
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The archive, on the node; what is there already is not overwritten
    #[arg(short, long, visible_alias = "export", value_name = "FILE")]
    output: PathBuf,
    /// Give up after so long, as in 90 (seconds) or 5m; 0: after ten minutes
    #[arg(short, long, default_value = "0", value_name = "TIME")]
    time: String,
}

impl Checkpoint {
    /// Writes the archive and prints its path.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let limit = duration::parse(&self.time).context("--time")?;
        let location = std::path::absolute(&self.output)
            .with_context(|| format!("reading the path {}", self.output.display()))?;
        let location = location.to_str().with_context(|| format!("{} is no text", location.display()))?;
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let request = CheckpointContainerRequest {
            container_id: container.id.clone(),
            location: location.to_owned(),
            timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        };
        let made = client.runtime.checkpoint_container(request).await.answer();
        made.with_context(|| format!("checkpointing {}", self.container))?;
        output::print_line(location)?;
        Ok(0)
    }
}
