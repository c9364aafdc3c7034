//! `berth system prune`.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{ListImagesRequest, RemoveImageRequest};
use clap::Args;

use super::{ended, usage};
use crate::client::{self, Client};
use crate::commands::run::log_dir;
use crate::commands::volume;
use crate::failure::{self, Answer};
use crate::names::pod_name;
use crate::output::{self, human};

/// Options of `system prune`.
#[derive(Debug, Args)]
#[command(after_help = "Images that are pinned, and pods and containers of the kubelet, are never removed.")]
pub(crate) struct Prune {
    /// Only images: those that no container uses (with neither this nor --containers: both)
    #[arg(long)]
    images: bool,
    /// Only containers: those of `berth run` that have ended, with their pods and logs
    #[arg(long)]
    containers: bool,
    /// Volumes that no container mounts, with all that is in them: only when asked for
    #[arg(long)]
    volumes: bool,
    /// Say what would be removed, and leave it
    #[arg(long)]
    dry_run: bool,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    /// Removes containers first: what they used may be used by nothing afterwards.
    pub(super) async fn execute(self, client: &mut Client) -> Result<u8> {
        // Of the three, those that are named; without a name the two that can be had again.
        let both = !self.images && !self.containers && !self.volumes || self.images && self.containers;
        let (images, containers) = (self.images || both, self.containers || both);
        if !self.dry_run && !self.force && !agreed(images, containers, self.volumes)? {
            return Ok(1);
        }
        let before = usage(client).await?;
        let mut failed = Vec::new();
        if containers {
            self.containers(client, &mut failed).await?;
        }
        if self.volumes {
            volume::prune(client, self.dry_run, &mut failed).await?;
        }
        if images {
            self.images(client, &mut failed).await?;
        }
        if self.dry_run {
            // What containers to be removed hold is not counted yet.
            if images {
                let free = human::size(before.reclaimable_bytes);
                output::print_line(&format!("images that nothing uses now take {free}"))?;
            }
        } else {
            let after = usage(client).await?;
            let freed = human::size(before.bytes.saturating_sub(after.bytes));
            output::print_line(&format!("{freed} of images and layers came free"))?;
        }
        failure::summary(failed)
    }

    async fn containers(&self, client: &mut Client, failed: &mut Vec<anyhow::Error>) -> Result<()> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        for pod in ended(&containers, &pods) {
            let name = pod_name(pod);
            if self.dry_run {
                output::print_line(&format!("would remove container {name}"))?;
                continue;
            }
            let removed = async {
                client.stop_pod(&pod.id).await?;
                client.remove_pod(&pod.id).await
            };
            match removed.await.with_context(|| format!("removing {name}")) {
                Ok(()) => {
                    log_dir::remove_of(&pod.annotations);
                    output::print_line(&format!("removed container {name}"))?;
                }
                Err(error) => failed.push(error),
            }
        }
        Ok(())
    }

    async fn images(&self, client: &mut Client, failed: &mut Vec<anyhow::Error>) -> Result<()> {
        let answer = client.images.list_images(ListImagesRequest { filter: None }).await.answer();
        let known = answer.context("listing images")?.images;
        let unused = usage(client).await?.images;
        for image in unused.iter().filter(|image| !image.in_use && !image.pinned) {
            let listed = known.iter().find(|one| one.id == image.id);
            let name = listed.and_then(|one| one.repo_tags.first()).unwrap_or(&image.id).clone();
            let size = human::size(image.unique_bytes);
            if self.dry_run {
                output::print_line(&format!("would remove image {name} ({size} of its own)"))?;
                continue;
            }
            let request = RemoveImageRequest { image: Some(client::image_spec(&image.id)) };
            match client.images.remove_image(request).await.answer() {
                Ok(_) => output::print_line(&format!("removed image {name}"))?,
                Err(refusal) => {
                    failed.push(anyhow::Error::from(refusal).context(format!("removing image {name}")));
                }
            }
        }
        Ok(())
    }
}

/// Whether the person at the terminal wants that.
fn agreed(images: bool, containers: bool, volumes: bool) -> Result<bool> {
    let what = [
        (containers, "all ended containers of `berth run`"),
        (volumes, "all volumes that no container mounts, with all that is in them"),
        (images, "all images that no container uses"),
    ];
    let what: Vec<&str> = what.iter().filter(|(wanted, _)| *wanted).map(|(_, what)| *what).collect();
    let what = what.join(", and ");
    if !io::stdin().is_terminal() {
        bail!("this removes {what}: say --force, or --dry-run to see them");
    }
    let mut screen = io::stderr();
    write!(screen, "This removes {what}. Go on? [y/N] ")?;
    screen.flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(64).read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
