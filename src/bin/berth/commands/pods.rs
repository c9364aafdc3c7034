//! `berth pods`.

use anyhow::Result;
use berth::proto::runtime::v1::{PodSandbox, PodSandboxState, PodSandboxStatus};
use clap::Args;
use futures::{StreamExt, stream};

use crate::client::Client;
use crate::failure::refusal_code;
use crate::options::listing::Listing;
use crate::output::table::{Cell, Table, Tone};
use crate::output::{self, human};
use crate::view::{self, PodView};

/// Calls under way at once.
const PARALLEL: usize = 16;

/// Options of `pods`.
#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Only pods that are ready
    #[arg(short, long)]
    ready: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Pods {
    /// Lists them, the youngest first.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut pods = client.pods().await?;
        pods.retain(|pod| !self.ready || pod.state() == PodSandboxState::SandboxReady);
        pods.sort_by(|one, other| other.created_at.cmp(&one.created_at).then(one.id.cmp(&other.id)));
        let filters = self.listing.filters()?;
        if self.listing.quiet && filters.is_empty() {
            let ids = pods.iter().map(|pod| human::short_id(&pod.id, self.listing.no_trunc));
            output::print(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
            return Ok(0);
        }
        let listed = with_status(&client, pods).await?;
        let (mut kept, mut views) = (Vec::new(), Vec::new());
        for (pod, status) in listed {
            let view = PodView::new(&pod, status.as_ref());
            if filters.keep(&view)? {
                kept.push((pod, status));
                views.push(view);
            }
        }
        if self.listing.quiet {
            let ids = views.iter().map(|view| human::short_id(&view.id, self.listing.no_trunc));
            output::print(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
        } else if !self.listing.print(&views)? {
            output::print(
                &table(&kept, human::now_nanos(), self.listing.no_trunc).render(output::colours()),
            )?;
        }
        Ok(0)
    }
}

async fn with_status(
    client: &Client,
    pods: Vec<PodSandbox>,
) -> Result<Vec<(PodSandbox, Option<PodSandboxStatus>)>> {
    let asked = pods.into_iter().map(|pod| {
        let mut client = client.clone();
        async move {
            match client.pod_status(&pod.id, false).await {
                Ok(response) => Ok(Some((pod, response.status))),
                Err(error) if refusal_code(&error) == Some(tonic::Code::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        }
    });
    let answers: Vec<Result<_>> = stream::iter(asked).buffered(PARALLEL).collect().await;
    answers.into_iter().filter_map(Result::transpose).collect()
}

fn table(listed: &[(PodSandbox, Option<PodSandboxStatus>)], now: i64, no_trunc: bool) -> Table {
    let mut table = Table::new(&["POD ID", "NAME", "NAMESPACE", "STATE", "CREATED", "ADDRESSES", "RUNTIME"]);
    for (pod, status) in listed {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let state = match pod.state() {
            PodSandboxState::SandboxReady => Cell::toned("Ready", Tone::Good),
            PodSandboxState::SandboxNotready => Cell::toned("NotReady", Tone::Dim),
        };
        let addresses = status.as_ref().map(view::addresses).unwrap_or_default().join(",");
        let runtime = if pod.runtime_handler.is_empty() { "(default)" } else { &pod.runtime_handler };
        table.row([
            human::short_id(&pod.id, no_trunc).into(),
            metadata.name.into(),
            metadata.namespace.into(),
            state,
            human::ago(pod.created_at, now).into(),
            if addresses.is_empty() { "-".into() } else { addresses.into() },
            runtime.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use berth::proto::runtime::v1::PodSandboxMetadata;

    use super::*;

    #[test]
    fn the_table() {
        let metadata =
            PodSandboxMetadata { name: "web".into(), namespace: "default".into(), ..Default::default() };
        let pod = PodSandbox {
            id: "0123456789abcdef".into(),
            metadata: Some(metadata),
            created_at: 1,
            ..PodSandbox::default()
        };
        let text = table(&[(pod, None)], 60_000_000_001, false).render(false);
        let row = text.lines().nth(1).unwrap_or_default();
        assert_eq!(
            row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>(),
            ["0123456789ab", "web", "default", "Ready", "1 minute ago", "-", "(default)"]
        );
    }
}
