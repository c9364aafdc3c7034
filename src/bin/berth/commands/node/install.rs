//! `berth node install`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use berth::node::{self, Mode, Options};
use clap::{Args, ValueEnum};

use crate::options::listing::Format;

/// What a node uses Berth for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Use {
    /// Beside containerd, which runs the pods of a RuntimeClass by Berth's shim
    Runtimeclass,
    /// As the node's runtime, which the kubelet talks to
    Node,
}

/// Options of `node install`.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// What the node uses Berth for
    #[arg(long, value_enum, default_value = "runtimeclass")]
    mode: Use,
    /// The version; one that is on the node already is used again, as for going back [default: this program's]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// The directory of berthd, berth, berth-shim and berth-cni [default: this program's]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// A configuration for the daemon, put into /etc/berth/conf.d
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave the kubelet, or containerd, as it is
    #[arg(long)]
    no_switch: bool,
    /// Install although the node lacks something that Berth needs
    #[arg(long)]
    no_check: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Install {
    /// Checks, installs, and says what was done.
    pub(super) async fn execute(self) -> Result<u8> {
        let mode = match self.mode {
            Use::Runtimeclass => Mode::RuntimeClass,
            Use::Node => Mode::Node,
        };
        if !self.no_check {
            let missing = super::check::missing(&self.root, mode)?;
            if !missing.is_empty() {
                bail!(
                    "this node can't run Berth: {}; `berth node check` says more, --no-check installs all the same",
                    missing.join("; ")
                );
            }
        }
        let options = Options {
            root: self.root.clone(),
            mode,
            version: self.version,
            from: self.from,
            config: self.config,
            no_switch: self.no_switch,
        };
        let dry = self.dry_run;
        let report = tokio::task::spawn_blocking(move || node::install(&options, dry)).await?;
        let report = report
            .map_err(|error| super::explain(&error))
            .with_context(|| format!("installing on {}", self.root.display()))?;
        super::tell(&report, self.output, dry)?;
        Ok(0)
    }
}
