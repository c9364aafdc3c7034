//! What the daemon says of itself, printed as it is.

use anyhow::{Context, Result};
use berth::proto::berth::v1::{
    HealthRequest, InspectNetworkRequest, LeftoversRequest, ListNetworksRequest, MetricsRequest,
    RecentEventsRequest, Work,
};
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Answer;
use crate::output;

/// Pods and containers whose status is asked for.
const MOST: usize = 1000;

pub(super) async fn health(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let answer = client.debug.health(HealthRequest {}).await.answer().context("asking what is under way")?;
    let hangs = answer.hangs.iter().map(|hang| {
        json!({ "part": hang.part, "milliseconds": hang.milliseconds, "work": hang.work.as_ref().map(work) })
    });
    let hangs: Vec<Value> = hangs.collect();
    output::print_json(&json!({
        "hangs": hangs,
        "underWay": answer.under_way.iter().map(work).collect::<Vec<_>>(),
        "network": answer.network,
        "sessions": answer.sessions,
    }))?;
    Ok(u8::from(!hangs.is_empty()))
}

fn work(work: &Work) -> Value {
    json!({
        "kind": work.kind,
        "operation": work.operation,
        "stage": work.stage,
        "object": work.object,
        "milliseconds": work.milliseconds,
    })
}

pub(super) async fn metrics(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let answer = client.debug.metrics(MetricsRequest {}).await.answer().context("asking for the metrics")?;
    output::print(&answer.text)?;
    Ok(0)
}

pub(super) async fn leftovers(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let answer =
        client.debug.leftovers(LeftoversRequest {}).await.answer().context("asking for leftovers")?;
    let left = answer.leftovers.iter().map(|one| json!({ "kind": one.kind, "what": one.what }));
    output::print_json(&json!({
        "leftovers": left.collect::<Vec<_>>(),
        "firewall": {
            "table": answer.table,
            "tableMissing": answer.table_missing,
            "missingElements": answer.missing_elements,
            "surplusElements": answer.surplus_elements,
        },
        "shims": {
            "running": answer.shims,
            "former": answer.former_shims,
            "program": answer.shim_program,
        },
    }))?;
    Ok(0)
}

pub(super) async fn events(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let answer = client.debug.recent_events(RecentEventsRequest {}).await.answer();
    let events = answer.context("asking for events")?.events.into_iter();
    let events = events.map(|event| {
        json!({ "at": event.at, "kind": event.kind, "podId": event.pod_id, "containerId": event.container_id })
    });
    output::print_json(&events.collect::<Vec<_>>())?;
    Ok(0)
}

/// As the CRI has it. What is gone by the time that it is asked for is left out.
pub(super) async fn pods(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    for pod in client.pods().await?.into_iter().take(MOST) {
        if let Ok(status) = client.pod_status(&pod.id, true).await {
            pods.push(json!({ "status": status.status, "info": parsed(status.info) }));
        }
    }
    for container in client.containers().await?.into_iter().take(MOST) {
        if let Ok(status) = client.container_status(&container.id, true).await {
            containers.push(json!({ "status": status.status, "info": parsed(status.info) }));
        }
    }
    output::print_json(&json!({ "pods": pods, "containers": containers }))?;
    Ok(0)
}

/// The daemon's own words are JSON in strings.
fn parsed(info: std::collections::HashMap<String, String>) -> serde_json::Map<String, Value> {
    let parse = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    info.into_iter().map(|(name, text)| (name, parse(text))).collect()
}

pub(super) async fn networks(address: &str) -> Result<u8> {
    let mut client = Client::connect(address).await?;
    let list = client.networks.list_networks(ListNetworksRequest::default()).await.answer();
    let mut found = Vec::new();
    for network in list.context("listing networks")?.networks {
        let request = InspectNetworkRequest { name: network.name.clone() };
        if let Ok(answer) = client.networks.inspect_network(request).await.answer() {
            found.push(crate::commands::network::view(answer));
        }
    }
    output::print_json(&found)?;
    Ok(0)
}
