//! `berth debug`: the daemon itself.

mod bundle;
mod look;
mod redact;

use anyhow::Result;
use clap::Subcommand;

/// What can be looked into.
#[derive(Debug, Subcommand)]
pub(crate) enum Debug {
    /// Gather what a report of a fault needs into one archive, without secrets
    Bundle(bundle::Bundle),
    /// What hangs, and what is under way in which stage, as JSON; 1 when something hangs
    Health,
    /// The daemon's numbers, in Prometheus' text format
    Metrics,
    /// What belongs to no pod, and where the kernel differs from the records, as JSON
    Leftovers,
    /// The last things that happened to pods and containers, as JSON
    Events,
    /// All pods and containers in full, as JSON
    #[command(hide = true)]
    Pods,
    /// All networks with who has joined them, as JSON
    #[command(hide = true)]
    Networks,
}

impl Debug {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        match self {
            Self::Bundle(bundle) => bundle.execute(address).await,
            Self::Health => look::health(address).await,
            Self::Metrics => look::metrics(address).await,
            Self::Leftovers => look::leftovers(address).await,
            Self::Events => look::events(address).await,
            Self::Pods => look::pods(address).await,
            Self::Networks => look::networks(address).await,
        }
    }
}
