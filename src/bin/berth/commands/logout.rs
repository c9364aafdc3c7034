//! `berth logout`.

use anyhow::Result;
use clap::Args;

use crate::{credentials, output};

/// Options of `logout`.
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// The registry, as in registry.example:5000
    #[arg(value_name = "REGISTRY", default_value = credentials::DEFAULT_REGISTRY)]
    registry: String,
}

impl Logout {
    /// Forgets them. Needs no daemon.
    pub(crate) async fn execute(self) -> Result<u8> {
        let registry = credentials::registry(&self.registry)?;
        let found = credentials::forget(&registry).await?;
        output::print_line(&match found {
            true => format!("logged out of {registry}"),
            false => format!("no credentials for {registry} were kept"),
        })?;
        Ok(0)
    }
}
