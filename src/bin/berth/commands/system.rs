//! `berth system`: what takes room on the disk, and making some.

mod df;
mod prune;

use anyhow::{Context, Result};
use berth::proto::berth::v1::{UsageRequest, UsageResponse};
use berth::proto::runtime::v1::{Container, ContainerState, PodSandbox, PodSandboxState};
use clap::Subcommand;

use crate::client::Client;
use crate::commands::run::marks;
use crate::failure::Answer;
use crate::names::Names;

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Show what images and containers take of the disk
    Df(df::Df),
    /// Remove what nothing uses any more
    Prune(prune::Prune),
}

impl System {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        match self {
            Self::Df(df) => df.execute(&mut client).await,
            Self::Prune(prune) => prune.execute(&mut client).await,
        }
    }
}

async fn usage(client: &mut Client) -> Result<UsageResponse> {
    let answer = client.transfer.usage(UsageRequest {}).await.answer();
    answer.context("asking what images take of the disk")
}

/// Pods of `run` in which all is over. Pods of the kubelet are its own business.
fn ended<'a>(containers: &'a [Container], pods: &'a [PodSandbox]) -> Vec<&'a PodSandbox> {
    let names = Names { containers, pods };
    let is_over = |pod: &&PodSandbox| {
        let own = names.containers_of(pod);
        let over = own.iter().all(|container| container.state() == ContainerState::ContainerExited);
        // One without containers is on its way, unless it was stopped.
        over && (!own.is_empty() || pod.state() == PodSandboxState::SandboxNotready)
    };
    pods.iter().filter(|pod| marks::is_of_run(&pod.labels)).filter(is_over).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn pod(id: &str, of_run: bool, state: PodSandboxState) -> PodSandbox {
        let labels =
            if of_run { HashMap::from([(marks::RUN.to_owned(), id.to_owned())]) } else { HashMap::new() };
        PodSandbox { id: id.into(), labels, state: state.into(), ..PodSandbox::default() }
    }

    fn container(pod: &str, state: ContainerState) -> Container {
        Container { pod_sandbox_id: pod.into(), state: state.into(), ..Container::default() }
    }

    #[test]
    fn only_what_is_over_and_was_made_by_run_is_removed() {
        let (ready, not) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
        let pods = [
            pod("over", true, ready),
            pod("stopped", true, not),
            pod("runs", true, ready),
            pod("begins", true, ready),
            pod("made", true, ready),
            pod("kubelet", false, not),
        ];
        let containers = [
            container("over", ContainerState::ContainerExited),
            container("runs", ContainerState::ContainerExited),
            container("runs", ContainerState::ContainerRunning),
            container("made", ContainerState::ContainerCreated),
            container("kubelet", ContainerState::ContainerExited),
        ];
        let found: Vec<&str> = ended(&containers, &pods).iter().map(|pod| pod.id.as_str()).collect();
        assert_eq!(found, ["over", "stopped"]);
    }
}
