//! `berth node uninstall`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use berth::node::{self, HostRoot, Manifest, Mode};
use clap::Args;

use crate::client::Client;
use crate::options::listing::Format;

/// Options of `node uninstall`.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Uninstall although pods run; they go on without anybody who looks after them
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Uninstall {
    /// Uninstalls, and says what was done.
    pub(super) async fn execute(self, address: &str) -> Result<u8> {
        if !self.force && !self.dry_run {
            self.refuse_with_pods(address).await?;
        }
        let (root, dry) = (self.root.clone(), self.dry_run);
        let report = tokio::task::spawn_blocking(move || node::uninstall(&root, dry)).await?;
        let report = report
            .map_err(|error| super::explain(&error))
            .with_context(|| format!("uninstalling from {}", self.root.display()))?;
        super::tell(&report, self.output, dry)?;
        Ok(0)
    }

    /// Pods whose daemon goes would run on without anybody who stops them.
    async fn refuse_with_pods(&self, address: &str) -> Result<()> {
        let manifest = HostRoot::open(&self.root).and_then(|root| Manifest::load(&root));
        let manifest = manifest.map_err(|error| super::explain(&error))?;
        if manifest.is_none_or(|manifest| manifest.mode != Mode::Node) {
            return Ok(());
        }
        let socket = self.root.join(Path::new(address).strip_prefix("/").unwrap_or(Path::new(address)));
        // A daemon that is not there has no pods that could be counted.
        let Ok(mut client) = Client::connect(&socket.to_string_lossy()).await else { return Ok(()) };
        let Ok(pods) = client.pods().await else { return Ok(()) };
        if !pods.is_empty() {
            bail!(
                "{} pods are on this node: drain it (`kubectl drain`), or remove them (`berth pods`, `berth rm --force`); \
                 --force uninstalls all the same",
                pods.len()
            );
        }
        Ok(())
    }
}
