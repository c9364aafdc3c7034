//! `berth ps`.

use anyhow::Result;
use berth::proto::runtime::v1::{Container, ContainerState, ContainerStatus};
use clap::Args;
use futures::{StreamExt, stream};

use crate::client::Client;
use crate::failure::refusal_code;
use crate::names::{self, Names};
use crate::options::listing::Listing;
use crate::output::table::{Cell, Table, Tone};
use crate::output::{self, human};
use crate::view::ContainerView;

/// Calls under way at once.
const PARALLEL: usize = 16;

/// Options of `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Only the container that was made last, whatever it does
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
    /// Only so many of those made last, whatever they do
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only containers of this pod
    #[arg(short, long, value_name = "POD")]
    pod: Option<String>,
    #[command(flatten)]
    listing: Listing,
}

impl Ps {
    /// Lists them, the youngest first.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let all = client.containers().await?;
        let pods = client.pods().await?;
        let names = Names { containers: &all, pods: &pods };
        let filters = self.listing.filters()?;
        // Who asks for ended ones means them.
        let most = if self.latest { Some(1) } else { self.last };
        let all_states = self.all || most.is_some() || filters.asks_for_state();
        let pod = self.pod.as_deref().map(|name| names.pod(name)).transpose()?;
        let mut containers: Vec<Container> = all
            .iter()
            .filter(|container| all_states || container.state() == ContainerState::ContainerRunning)
            .filter(|container| pod.is_none_or(|pod| container.pod_sandbox_id == pod.id))
            .cloned()
            .collect();
        containers.sort_by(|one, other| other.created_at.cmp(&one.created_at).then(one.id.cmp(&other.id)));
        if filters.is_empty() {
            containers.truncate(most.unwrap_or(usize::MAX));
        }
        if self.listing.quiet && filters.is_empty() {
            let ids =
                containers.iter().map(|container| human::short_id(&container.id, self.listing.no_trunc));
            output::print(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
            return Ok(0);
        }
        let listed = with_status(&client, containers).await?;
        let (mut kept, mut views) = (Vec::new(), Vec::new());
        for (container, status) in listed {
            let view = ContainerView::new(&container, status.as_ref(), names.pod_of(&container));
            if filters.keep(&view)? {
                kept.push((container, status));
                views.push(view);
            }
        }
        kept.truncate(most.unwrap_or(usize::MAX));
        views.truncate(kept.len());
        if self.listing.quiet {
            let ids = views.iter().map(|view| human::short_id(&view.id, self.listing.no_trunc));
            output::print(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
        } else if !self.listing.print(&views)? {
            let mut table = Table::new(&["CONTAINER ID", "IMAGE", "CREATED", "STATUS", "NAME", "POD"]);
            let now = human::now_nanos();
            for (container, status) in &kept {
                table.row([
                    human::short_id(&container.id, self.listing.no_trunc).into(),
                    image(container, self.listing.no_trunc).into(),
                    human::ago(container.created_at, now).into(),
                    state(container.state(), status.as_ref(), now),
                    names::container_name(container).into(),
                    names.pod_of(container).map_or("", names::pod_name).into(),
                ]);
            }
            output::print(&table.render(output::colours()))?;
        }
        Ok(0)
    }
}

/// Each container with its status. One that is removed meanwhile is left out; order is kept.
pub(crate) async fn with_status(
    client: &Client,
    containers: Vec<Container>,
) -> Result<Vec<(Container, Option<ContainerStatus>)>> {
    let asked = containers.into_iter().map(|container| {
        let mut client = client.clone();
        async move {
            match client.container_status(&container.id, false).await {
                Ok(response) => Ok(Some((container, response.status))),
                Err(error) if refusal_code(&error) == Some(tonic::Code::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        }
    });
    let answers: Vec<Result<_>> = stream::iter(asked).buffered(PARALLEL).collect().await;
    answers.into_iter().filter_map(Result::transpose).collect()
}

fn image(container: &Container, no_trunc: bool) -> String {
    let asked_for = container.image.as_ref().map_or("", |image| {
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }
    });
    match asked_for {
        "" => human::short_id(&container.image_id, no_trunc),
        digest if digest.starts_with("sha256:") => human::short_id(digest, no_trunc),
        name => name.to_owned(),
    }
}

fn state(listed: ContainerState, status: Option<&ContainerStatus>, now: i64) -> Cell {
    let Some(status) = status else { return Cell::from(crate::view::container_state(listed)) };
    match status.state() {
        ContainerState::ContainerCreated => Cell::toned("Created", Tone::Dim),
        ContainerState::ContainerRunning => {
            Cell::toned(format!("Up {}", human::span(now.saturating_sub(status.started_at))), Tone::Good)
        }
        ContainerState::ContainerExited => {
            let tone = if status.exit_code == 0 { Tone::Dim } else { Tone::Bad };
            let reason = match status.reason.as_str() {
                "" | "Completed" | "Error" => String::new(),
                reason => format!(", {reason}"),
            };
            let ago = human::ago(status.finished_at, now);
            Cell::toned(format!("Exited ({}{reason}) {ago}", status.exit_code), tone)
        }
        ContainerState::ContainerUnknown => Cell::toned("Unknown", Tone::Bad),
    }
}

#[cfg(test)]
mod tests {
    use berth::proto::runtime::v1::ImageSpec;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn shown(status: &ContainerStatus) -> String {
        let mut table = Table::new(&["S"]);
        table.row([state(status.state(), Some(status), 100 * SECOND)]);
        table.render(false).lines().nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn states_as_people_read_them() {
        let mut status = ContainerStatus { started_at: 40 * SECOND, ..ContainerStatus::default() };
        status.set_state(ContainerState::ContainerRunning);
        assert_eq!(shown(&status), "Up 1 minute");
        status.set_state(ContainerState::ContainerExited);
        status.finished_at = 98 * SECOND;
        status.reason = "Completed".into();
        assert_eq!(shown(&status), "Exited (0) 2 seconds ago");
        status.exit_code = 137;
        status.reason = "OOMKilled".into();
        assert_eq!(shown(&status), "Exited (137, OOMKilled) 2 seconds ago");
        status.set_state(ContainerState::ContainerCreated);
        assert_eq!(shown(&status), "Created");
    }

    #[test]
    fn images_are_named_as_they_were_asked_for() {
        let of = |image: &str, user: &str| Container {
            image: Some(ImageSpec {
                image: image.into(),
                user_specified_image: user.into(),
                ..ImageSpec::default()
            }),
            image_id: "sha256:9999999999999999".into(),
            ..Container::default()
        };
        assert_eq!(image(&of("sha256:0123456789abcdef", "nginx"), false), "nginx");
        assert_eq!(image(&of("sha256:0123456789abcdef", ""), false), "0123456789ab");
        assert_eq!(image(&of("", ""), false), "999999999999");
    }
}
