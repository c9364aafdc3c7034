//! `berth rm`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{Container, ContainerState, PodSandbox, RemoveContainerRequest};
use clap::Args;

use crate::client::Client;
use crate::commands::run::{log_dir, marks, remove_volumes};
use crate::commands::stop::stop_pod;
use crate::failure::{self, Answer};
use crate::names::{Named, Names, container_name, pod_name};
use crate::output;

/// Options of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Containers or pods: ids, unique prefixes of them, names, or POD/NAME
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Kill what runs, and no error when it is not there
    #[arg(short, long)]
    force: bool,
    /// With them the volumes that `berth run -v /path` made for them
    #[arg(short, long)]
    volumes: bool,
}

impl Rm {
    /// Removes one after the other, and goes on after a failure.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut failed = Vec::new();
        for name in &self.names {
            match self.remove(&mut client, name).await.with_context(|| format!("removing {name}")) {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }

    async fn remove(&self, client: &mut Client, name: &str) -> Result<()> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let names = Names { containers: &containers, pods: &pods };
        match names.any(name) {
            Err(_) if self.force && !names.knows(name) => Ok(()),
            Err(error) => Err(error),
            Ok(Named::Pod(pod)) => self.remove_pod(client, &names, pod).await,
            // What `run` made is one thing to its user.
            Ok(Named::Container(container)) => {
                match names.pod_of(container).filter(|pod| marks::is_of_run(&pod.labels)) {
                    Some(pod) => self.remove_pod(client, &names, pod).await,
                    None => self.remove_container(client, container).await,
                }
            }
        }
    }

    async fn remove_pod(&self, client: &mut Client, names: &Names<'_>, pod: &PodSandbox) -> Result<()> {
        let running = names.containers_of(pod).into_iter().find(|container| is_running(container));
        if let Some(container) = running.filter(|_| !self.force) {
            let (pod, container) = (pod_name(pod), container_name(container));
            bail!("container {container} is running: `berth stop {pod}` first, or use --force");
        }
        stop_pod(client, names, pod, Duration::ZERO).await?;
        client.remove_pod(&pod.id).await?;
        log_dir::remove_of(&pod.annotations);
        if self.volumes && marks::is_of_run(&pod.labels) {
            remove_volumes(client, &marks::volumes(&pod.annotations)).await;
        }
        Ok(())
    }

    async fn remove_container(&self, client: &mut Client, container: &Container) -> Result<()> {
        if is_running(container) {
            if !self.force {
                bail!("it is running: `berth stop {}` first, or use --force", container_name(container));
            }
            client.stop_container(&container.id, Duration::ZERO).await?;
        }
        let request = RemoveContainerRequest { container_id: container.id.clone() };
        client.runtime.remove_container(request).await.answer()?;
        Ok(())
    }
}

fn is_running(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}
