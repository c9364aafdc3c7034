//! `berth commit`.

use anyhow::{Context, Result};
use berth::proto::berth::v1::CommitRequest;
use clap::Args;

use crate::client::Client;
use crate::failure::Answer;
use crate::names::Names;
use crate::output;

/// Options of `commit`.
#[derive(Debug, Args)]
#[command(
    after_help = "What lies on mounts and volumes is not part of the image. The container is not stopped meanwhile: \
    each file is taken as it is when it is read. Where files must fit together, as those of a database, `berth stop` it first."
)]
pub(crate) struct Commit {
    /// The container: id, unique prefix of it, name, or POD/NAME
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The new image's name, as in registry:5000/team/app:1.2
    #[arg(value_name = "NAME[:TAG]")]
    reference: String,
    /// Change the image's configuration, as in 'CMD ["app"]' (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Who made it
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// What was done
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
}

impl Commit {
    /// Makes the image and prints its id.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let request = CommitRequest {
            container_id: container.id.clone(),
            reference: self.reference,
            changes: self.change,
            author: self.author,
            message: self.message,
        };
        let made = client.own_containers.commit(request).await.answer();
        let made = made.with_context(|| format!("committing {}", self.container))?;
        output::print_line(&made.image.unwrap_or_default().id)?;
        Ok(0)
    }
}
