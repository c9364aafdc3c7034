//! `berth tag`.

use anyhow::{Context, Result};
use berth::proto::berth::v1::TagRequest;
use clap::Args;

use crate::client::Client;
use crate::failure::Answer;

/// Options of `tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image: a name, an id, or a unique prefix of one
    #[arg(value_name = "IMAGE")]
    source: String,
    /// Its new name, as in registry:5000/team/app:1.2
    #[arg(value_name = "NAME[:TAG]")]
    target: String,
}

impl Tag {
    /// Gives it the name.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let request = TagRequest { source: self.source.clone(), target: self.target };
        client.transfer.tag(request).await.answer().with_context(|| format!("tagging {}", self.source))?;
        Ok(0)
    }
}
