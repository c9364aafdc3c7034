//! What a container may use.

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::LinuxContainerResources;
use clap::Args;

use super::quantity;

/// Limits, the same for `run` and `update`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Limits {
    /// Memory limit, as in 512m
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Processors it may use, as in 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Its weight when processors are short, 2 to 262144 (1024 is the usual)
    #[arg(short, long, value_name = "SHARES", value_parser = clap::value_parser!(i64).range(2..=262_144))]
    pub cpu_shares: Option<i64>,
    /// Which processors it may run on, as in 0-2,5
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Processes and threads it may have; -1: any number
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub pids_limit: Option<i64>,
}

impl Limits {
    /// What was named, in the CRI's words.
    pub(crate) fn resources(&self) -> Result<LinuxContainerResources> {
        let mut resources = LinuxContainerResources {
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            ..LinuxContainerResources::default()
        };
        if let Some(memory) = &self.memory {
            resources.memory_limit_in_bytes = quantity::memory(memory).context("--memory")?;
        }
        if let Some(cpus) = &self.cpus {
            resources.cpu_quota = quantity::cpu_quota_micros(cpus).context("--cpus")?;
            resources.cpu_period = quantity::CPU_PERIOD_MICROS;
        }
        match self.pids_limit {
            Some(0) => {
                bail!("--pids-limit 0: a container without a process has ended; -1 takes the limit away")
            }
            Some(-1) => drop(resources.unified.insert("pids.max".to_owned(), "max".to_owned())),
            Some(limit) => drop(resources.unified.insert("pids.max".to_owned(), limit.to_string())),
            None => {}
        }
        Ok(resources)
    }
}
