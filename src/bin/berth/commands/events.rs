//! `berth events`.

use anyhow::{Context, Result};
use berth::proto::runtime::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use clap::Args;
use serde_json::json;

use crate::client::Client;
use crate::failure::{Answer, Refusal};
use crate::options::listing::Format;
use crate::output::{self, human};

/// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// How to print; json: an object a line
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl Events {
    /// Shows what happens to pods and containers from now on, until Ctrl-C or the daemon's end.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut events = client.runtime.get_container_events(GetEventsRequest {}).await.answer()?;
        loop {
            let event = events.message().await.map_err(Refusal::from).context("waiting for events")?;
            let Some(event) = event else { return Ok(0) };
            let event = Event::of(&event);
            match self.output {
                Format::Json => output::print_line(&event.json().to_string())?,
                Format::Table => output::print_line(&event.line(self.no_trunc))?,
            }
        }
    }
}

/// What a person wants to know of an event.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    /// Nanoseconds since 1970.
    at: i64,
    what: &'static str,
    kind: &'static str,
    id: String,
    name: String,
    pod: String,
    exit_code: Option<i32>,
    reason: String,
}

impl Event {
    fn of(event: &ContainerEventResponse) -> Self {
        let pod = event.pod_sandbox_status.as_ref();
        let pod_name = pod.and_then(|pod| pod.metadata.as_ref()).map(|metadata| metadata.name.clone());
        let container = event.containers_statuses.iter().find(|status| status.id == event.container_id);
        let is_pod = pod.is_some_and(|pod| pod.id == event.container_id);
        let name =
            container.and_then(|status| status.metadata.as_ref()).map(|metadata| metadata.name.clone());
        let kind = event.container_event_type();
        let ended = container.filter(|_| kind == ContainerEventType::ContainerStoppedEvent);
        Self {
            at: event.created_at,
            what: if is_pod { "pod" } else { "container" },
            kind: match kind {
                ContainerEventType::ContainerCreatedEvent => "created",
                ContainerEventType::ContainerStartedEvent => "started",
                ContainerEventType::ContainerStoppedEvent => "stopped",
                ContainerEventType::ContainerDeletedEvent => "deleted",
            },
            id: event.container_id.clone(),
            name: if is_pod { pod_name.clone() } else { name }.unwrap_or_default(),
            pod: pod_name.unwrap_or_default(),
            exit_code: ended.map(|status| status.exit_code),
            reason: ended.map(|status| status.reason.clone()).unwrap_or_default(),
        }
    }

    /// `2026-11-22T03:00:00Z container stopped 0123456789ab web in web (exit code 1, Error)`
    fn line(&self, no_trunc: bool) -> String {
        let time = human::timestamp(self.at).unwrap_or_default();
        let id = human::short_id(&self.id, no_trunc);
        let mut line = format!("{time} {} {} {id}", self.what, self.kind);
        if !self.name.is_empty() {
            line.push_str(&format!(" {}", self.name));
        }
        if self.what == "container" && !self.pod.is_empty() {
            line.push_str(&format!(" in {}", self.pod));
        }
        if let Some(code) = self.exit_code {
            let reason = if self.reason.is_empty() { String::new() } else { format!(", {}", self.reason) };
            line.push_str(&format!(" (exit code {code}{reason})"));
        }
        output::plain(&line)
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "time": human::timestamp(self.at),
            "type": self.what,
            "action": self.kind,
            "id": self.id,
            "name": self.name,
            "pod": self.pod,
            "exitCode": self.exit_code,
            "reason": self.reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use berth::proto::runtime::v1::{
        ContainerMetadata, ContainerStatus, PodSandboxMetadata, PodSandboxStatus,
    };

    use super::*;

    #[test]
    fn the_end_of_a_container_in_one_line() {
        let event = ContainerEventResponse {
            container_id: "0123456789abcdef".into(),
            container_event_type: ContainerEventType::ContainerStoppedEvent.into(),
            created_at: 0,
            pod_sandbox_status: Some(PodSandboxStatus {
                id: "pod".into(),
                metadata: Some(PodSandboxMetadata { name: "web".into(), ..PodSandboxMetadata::default() }),
                ..PodSandboxStatus::default()
            }),
            containers_statuses: vec![ContainerStatus {
                id: "0123456789abcdef".into(),
                metadata: Some(ContainerMetadata {
                    name: "ngi\x1bnx".into(),
                    ..ContainerMetadata::default()
                }),
                exit_code: 137,
                reason: "OOMKilled".into(),
                ..ContainerStatus::default()
            }],
        };
        let line = Event::of(&event).line(false);
        assert!(
            line.ends_with("container stopped 0123456789ab ngi?nx in web (exit code 137, OOMKilled)"),
            "{line}"
        );
    }
}
