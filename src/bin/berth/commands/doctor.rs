//! `berth doctor`: what is wrong on this node, and what to do about it.

mod daemon;

use std::path::PathBuf;

use anyhow::{Context, Result};
use berth::config::{self, CgroupDriver, NetworkMode, Source};
use berth::node::HostRoot;
use berth::node::check::Finding;
use berth::node::doctor::{self, Setup};
use clap::Args;

use crate::client::{self, Client};
use crate::commands::findings;
use crate::options::listing::Format;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// The daemon's configuration [default: /etc/berth/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print
    #[arg(short, long, visible_alias = "format", value_enum, default_value_t)]
    output: Format,
}

impl Doctor {
    /// Looks and prints; 1 when somebody has to do something.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let (mut findings, setup) = configuration(self.config, address);
        let (daemon, driver) = match Client::connect(address).await {
            Ok(mut client) => daemon::all(&mut client).await,
            Err(error) => {
                let advice = "what only the daemon knows (pools, rules, leftovers) was not looked at: systemctl status berth; \
                              journalctl -u berth";
                (vec![Finding::wrong("daemon", format!("{error:#}"), advice)], None)
            }
        };
        let setup = Setup { cgroup_driver: driver.or(setup.cgroup_driver), ..setup };
        let looked = HostRoot::open(&self.root).and_then(|root| doctor::host(&root, &setup));
        let looked = looked.map_err(|error| anyhow::anyhow!(berth::error::chain(&error)));
        findings.extend(looked.with_context(|| format!("looking at {}", self.root.display()))?);
        findings.extend(daemon);
        findings::show(&findings, self.output)
    }
}

/// What the daemon is configured with. One that can't be read is a finding; the defaults stand in for it.
fn configuration(file: Option<PathBuf>, address: &str) -> (Vec<Finding>, Setup) {
    const CHECK: &str = "configuration";
    let (finding, config) = match (Source { file, ..Source::default() }).load() {
        Ok(loaded) => {
            let names: Vec<String> = loaded.files.iter().map(|file| file.display().to_string()).collect();
            let found = if names.is_empty() { "no file, all defaults".to_owned() } else { names.join(", ") };
            (Finding::ok(CHECK, found), Some(loaded.config))
        }
        Err(error) => {
            let advice =
                "the daemon does not start with it: put it right, `berthd config check` says whether it is";
            (Finding::wrong(CHECK, error.to_string().replace('\n', "; "), advice), None)
        }
    };
    let defaults = || Setup {
        root: "/var/lib/berth".into(),
        state: "/run/berth".into(),
        address: client::socket_path(address).unwrap_or_default(),
        builtin_network: true,
        cgroup_driver: None,
    };
    let setup = config.map_or_else(defaults, |config: config::Config| Setup {
        builtin_network: config.network.mode != NetworkMode::Cni,
        cgroup_driver: match config.cgroup.driver {
            CgroupDriver::Systemd => Some("systemd"),
            CgroupDriver::Cgroupfs => Some("cgroupfs"),
            CgroupDriver::Auto => None,
        },
        root: config.root,
        state: config.state,
        address: config.grpc.address,
    });
    (vec![finding], setup)
}
