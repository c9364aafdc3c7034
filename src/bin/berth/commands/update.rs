//! `berth update`.

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use clap::Args;

use crate::client::Client;
use crate::failure::{self, Answer};
use crate::names::Names;
use crate::options::limits::Limits;
use crate::output;

/// Options of `update`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is not named stays. The kubelet sets limits of its own pods: change those in the cluster."
)]
pub(crate) struct Update {
    /// Containers: ids, unique prefixes of them, names, or POD/NAME
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    limits: Limits,
}

impl Update {
    /// Changes the limits of one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let resources = self.resources()?;
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.containers {
            match change(&mut client, name, &resources).await.with_context(|| format!("updating {name}")) {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }

    /// What was named, in the CRI's words.
    fn resources(&self) -> Result<LinuxContainerResources> {
        let resources = self.limits.resources()?;
        if resources == LinuxContainerResources::default() {
            bail!("which limit? name one of --memory, --cpus, --cpu-shares, --cpuset-cpus and --pids-limit");
        }
        Ok(resources)
    }
}

async fn change(client: &mut Client, name: &str, resources: &LinuxContainerResources) -> Result<()> {
    let (containers, pods) = (client.containers().await?, client.pods().await?);
    let container = Names { containers: &containers, pods: &pods }.container(name)?;
    let request = UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(resources.clone()),
        ..UpdateContainerResourcesRequest::default()
    };
    client.runtime.update_container_resources(request).await.answer()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn update(words: &[&str]) -> Update {
        let cli = Cli::try_parse_from([&["berth", "update"], words, &["web"]].concat()).unwrap();
        let Command::Update(update) = cli.command else { panic!("not update") };
        update
    }

    #[test]
    fn only_what_is_named_changes() {
        let resources = update(&["-m", "64m"]).resources().unwrap();
        let only = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        assert_eq!(resources, only);
        let resources = update(&["--cpus", "1.5", "--pids-limit", "-1"]).resources().unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_period), (150_000, 100_000));
        assert_eq!(resources.unified["pids.max"], "max");
    }

    #[test]
    fn mistakes_are_named() {
        for (words, said) in
            [(&[][..], "which limit?"), (&["-m", "much"], "--memory"), (&["--pids-limit", "0"], "-1 takes")]
        {
            let error = format!("{:#}", update(words).resources().unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        assert!(Cli::try_parse_from(["berth", "update", "--cpu-shares", "1", "web"]).is_err());
    }
}
