//! `berth system df`.

use std::collections::HashMap;

use anyhow::{Context, Result};
use berth::proto::berth::v1::UsageResponse;
use berth::proto::runtime::v1::{ContainerState, Image, ListContainerStatsRequest, ListImagesRequest};
use clap::Args;
use serde_json::json;

use super::{ended, usage};
use crate::client::Client;
use crate::failure::Answer;
use crate::names::{Names, container_name};
use crate::options::listing::Format;
use crate::output::table::Table;
use crate::output::{self, human};

/// Options of `system df`.
#[derive(Debug, Args)]
pub(crate) struct Df {
    /// Show each image and each container
    #[arg(short, long)]
    verbose: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What containers take, and what of it would come free.
#[derive(Debug, Default)]
struct Containers {
    total: usize,
    active: usize,
    bytes: u64,
    reclaimable: u64,
    /// Name, state and bytes of each.
    each: Vec<(String, ContainerState, u64)>,
}

impl Df {
    pub(super) async fn execute(self, client: &mut Client) -> Result<u8> {
        let images = usage(client).await?;
        let containers = measure(client).await?;
        let active = images.images.iter().filter(|image| image.in_use).count();
        if self.output == Format::Json {
            let each: Vec<_> = images
                .images
                .iter()
                .map(|image| {
                    json!({"id": image.id, "bytes": image.bytes, "uniqueBytes": image.unique_bytes,
                        "inUse": image.in_use, "pinned": image.pinned})
                })
                .collect();
            output::print_json(&json!({
                "images": {"total": images.images.len(), "active": active, "bytes": images.bytes,
                    "reclaimableBytes": images.reclaimable_bytes, "each": each},
                "containers": {"total": containers.total, "active": containers.active,
                    "bytes": containers.bytes, "reclaimableBytes": containers.reclaimable},
            }))?;
            return Ok(0);
        }
        let mut table = Table::new(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
        table.row([
            "Images".into(),
            images.images.len().to_string().into(),
            active.to_string().into(),
            human::size(images.bytes).into(),
            share(images.reclaimable_bytes, images.bytes).into(),
        ]);
        table.row([
            "Containers".into(),
            containers.total.to_string().into(),
            containers.active.to_string().into(),
            human::size(containers.bytes).into(),
            share(containers.reclaimable, containers.bytes).into(),
        ]);
        output::print(&table.render(output::colours()))?;
        if self.verbose {
            output::print("\n")?;
            output::print(&of_images(client, &images).await?.render(output::colours()))?;
            output::print("\n")?;
            output::print(&of_containers(&containers).render(output::colours()))?;
        }
        Ok(0)
    }
}

/// Writable layers. The daemon measures them behind its answers: a young container may show nothing yet.
async fn measure(client: &mut Client) -> Result<Containers> {
    let (containers, pods) = (client.containers().await?, client.pods().await?);
    let answer =
        client.runtime.list_container_stats(ListContainerStatsRequest { filter: None }).await.answer();
    let stats = answer.context("asking what containers take of the disk")?.stats;
    let sizes: HashMap<String, u64> = stats
        .into_iter()
        .filter_map(|one| Some((one.attributes?.id, one.writable_layer?.used_bytes?.value)))
        .collect();
    let over = ended(&containers, &pods);
    let names = Names { containers: &containers, pods: &pods };
    let mut sum = Containers { total: containers.len(), ..Containers::default() };
    for container in &containers {
        let bytes = sizes.get(&container.id).copied().unwrap_or_default();
        sum.bytes += bytes;
        if container.state() == ContainerState::ContainerRunning {
            sum.active += 1;
        }
        if names.pod_of(container).is_some_and(|pod| over.iter().any(|one| one.id == pod.id)) {
            sum.reclaimable += bytes;
        }
        sum.each.push((container_name(container).to_owned(), container.state(), bytes));
    }
    Ok(sum)
}

async fn of_images(client: &mut Client, usage: &UsageResponse) -> Result<Table> {
    let answer = client.images.list_images(ListImagesRequest { filter: None }).await.answer();
    let images: HashMap<String, Image> =
        answer.context("listing images")?.images.into_iter().map(|image| (image.id.clone(), image)).collect();
    let mut table = Table::new(&["IMAGE", "IMAGE ID", "SIZE", "UNIQUE SIZE", "USE"]);
    for one in &usage.images {
        let name =
            images.get(&one.id).and_then(|image| image.repo_tags.first()).map_or("<none>", String::as_str);
        let usage = match (one.in_use, one.pinned) {
            (true, _) => "containers",
            (false, true) => "pinned",
            (false, false) => "-",
        };
        table.row([
            name.into(),
            human::short_id(&one.id, false).into(),
            human::size(one.bytes).into(),
            human::size(one.unique_bytes).into(),
            usage.into(),
        ]);
    }
    Ok(table)
}

fn of_containers(containers: &Containers) -> Table {
    let mut table = Table::new(&["CONTAINER", "STATE", "SIZE"]);
    for (name, state, bytes) in &containers.each {
        table.row([
            name.as_str().into(),
            crate::view::container_state(*state).into(),
            human::size(*bytes).into(),
        ]);
    }
    table
}

/// `1.2MB (30%)`.
fn share(part: u64, whole: u64) -> String {
    let percent = part.saturating_mul(100).checked_div(whole).unwrap_or_default();
    format!("{} ({percent}%)", human::size(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent() {
        assert_eq!(share(0, 0), "0B (0%)");
        assert_eq!(share(1_500_000, 3_000_000), "1.5MB (50%)");
    }
}
