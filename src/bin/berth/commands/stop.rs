//! `berth stop`.

use std::time::Duration;

use anyhow::{Context, Result};
use berth::proto::runtime::v1::{ContainerState, PodSandbox};
use clap::Args;

use crate::client::Client;
use crate::commands::run::marks;
use crate::failure;
use crate::names::{Named, Names, container_name, pod_name};
use crate::options::duration;
use crate::output;

/// Options of `stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Containers or pods: ids, unique prefixes of them, names, or POD/NAME
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How long they have to end by themselves before they are killed
    #[arg(short, long = "time", alias = "timeout", value_name = "TIME", default_value = "10")]
    time: String,
}

impl Stop {
    /// Stops one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let grace = duration::parse(&self.time).context("--time")?;
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.names {
            match stop(&mut client, name, grace).await.with_context(|| format!("stopping {name}")) {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }
}

async fn stop(client: &mut Client, name: &str, grace: Duration) -> Result<()> {
    let (containers, pods) = (client.containers().await?, client.pods().await?);
    let names = Names { containers: &containers, pods: &pods };
    match names.any(name)? {
        Named::Pod(pod) => stop_pod(client, &names, pod, grace).await,
        // What `run` made is one thing to its user: nothing else will use the pod.
        Named::Container(container) => {
            match names.pod_of(container).filter(|pod| marks::is_of_run(&pod.labels)) {
                Some(pod) => stop_pod(client, &names, pod, grace).await,
                None => client.stop_container(&container.id, grace).await,
            }
        }
    }
}

/// Stops a pod's containers, all at once, then the pod: the CRI's own stop gives them no time.
pub(crate) async fn stop_pod(
    client: &mut Client,
    names: &Names<'_>,
    pod: &PodSandbox,
    grace: Duration,
) -> Result<()> {
    let running = names.containers_of(pod).into_iter().filter(|container| {
        matches!(container.state(), ContainerState::ContainerRunning | ContainerState::ContainerUnknown)
    });
    let stops = running.map(|container| {
        let mut client = client.clone();
        async move {
            let stopped = client.stop_container(&container.id, grace).await;
            stopped.with_context(|| format!("stopping container {}", container_name(container)))
        }
    });
    futures::future::join_all(stops).await.into_iter().collect::<Result<()>>()?;
    client.stop_pod(&pod.id).await.with_context(|| format!("stopping pod {}", pod_name(pod)))
}
