//! `berth inspect`.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::client::Client;
use crate::commands::ps;
use crate::failure;
use crate::names::{Named, Names};
use crate::output::{self, path::Template};
use crate::view::ContainerView;
use crate::view::details::{ContainerDetails, Details, ImageDetails, PodDetails};

/// Options of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Containers, pods or images: ids, unique prefixes of them, or names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Look only for this kind (else: a container, then a pod, then an image)
    #[arg(short, long = "type", value_enum, value_name = "KIND")]
    kind: Option<Kind>,
    /// Print parts only, a line for each thing: a path as in .status.state, or text with paths in braces as in '{.id} {.status.state}'
    #[arg(short, long, value_name = "PATH")]
    format: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Pod,
    Image,
}

impl Inspect {
    /// Prints a list with what was found; what was not is an error after that.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let format = self.format.as_deref().map(Template::parse).transpose().context("--format")?;
        let mut client = Client::connect(address).await?;
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for name in &self.names {
            match self.look(&mut client, name).await.with_context(|| format!("inspecting {name}")) {
                Ok(details) => found.push(details),
                Err(error) => failed.push(error),
            }
        }
        let Some(format) = format else {
            output::print_json(&found)?;
            return failure::summary(failed);
        };
        for details in &found {
            let text = format.apply(&serde_json::to_value(details)?).context("--format")?;
            output::print(&if text.ends_with('\n') { text } else { text + "\n" })?;
        }
        failure::summary(failed)
    }

    async fn look(&self, client: &mut Client, name: &str) -> Result<Details> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let names = Names { containers: &containers, pods: &pods };
        let named = match self.kind {
            Some(Kind::Container) => Named::Container(names.container(name)?),
            Some(Kind::Pod) => Named::Pod(names.pod(name)?),
            Some(Kind::Image) => {
                return image(client, name).await?.context("no such image: `berth images` lists them");
            }
            None => match names.container(name) {
                Ok(container) => Named::Container(container),
                Err(_) if names.knows(name) => names.any(name)?,
                Err(_) => match image(client, name).await? {
                    Some(details) => return Ok(details),
                    None => bail!("no container, pod or image is called that"),
                },
            },
        };
        match named {
            Named::Container(container) => {
                let response = client.container_status(&container.id, true).await?;
                let details = ContainerDetails::new(container, response, names.pod_of(container));
                Ok(Details::Container(Box::new(details)))
            }
            Named::Pod(pod) => {
                let response = client.pod_status(&pod.id, true).await?;
                let of_pod = names.containers_of(pod).into_iter().cloned().collect();
                let listed = ps::with_status(client, of_pod).await?;
                let views = listed
                    .iter()
                    .map(|(listed, status)| ContainerView::new(listed, status.as_ref(), Some(pod)));
                Ok(Details::Pod(Box::new(PodDetails::new(pod, response, views.collect()))))
            }
        }
    }
}

async fn image(client: &mut Client, name: &str) -> Result<Option<Details>> {
    let response = client.image_status(name, true).await?;
    Ok(ImageDetails::new(response).map(|details| Details::Image(Box::new(details))))
}
