//! `berth node await-daemonset`: waits in a pod until all pods of a DaemonSet are ready.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::api::{self, Api};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);
/// Looks in a row that fail before it gives up; the pod's own deadline and retries come on top.
const FAILURES: u32 = 30;

/// Options of `node await-daemonset`.
#[derive(Debug, Args)]
pub(crate) struct Await {
    /// NAMESPACE/NAME
    #[arg(value_name = "DAEMONSET")]
    daemonset: String,
    #[command(flatten)]
    api: api::Options,
}

/// What is read of a DaemonSet (apps/v1).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DaemonSet {
    metadata: Metadata,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    generation: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_generation: i64,
    desired_number_scheduled: i64,
    number_ready: i64,
    updated_number_scheduled: i64,
}

impl DaemonSet {
    fn is_done(&self) -> bool {
        let Status { observed_generation, desired_number_scheduled, number_ready, updated_number_scheduled } =
            self.status;
        observed_generation >= self.metadata.generation.max(1)
            && number_ready >= desired_number_scheduled
            && updated_number_scheduled >= desired_number_scheduled
    }
}

impl Await {
    /// Waits.
    pub(super) async fn execute(self) -> Result<u8> {
        let (namespace, name) =
            self.daemonset.split_once('/').context("the DaemonSet is given as NAMESPACE/NAME")?;
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        if !plain(namespace) || !plain(name) {
            bail!("{:?} is no DaemonSet: NAMESPACE/NAME", self.daemonset);
        }
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let api = Api::new(&self.api)?;
        let mut failures = 0;
        let mut said = String::new();
        loop {
            match look(&api, &path).await {
                Ok(found) => {
                    failures = 0;
                    let status = &found.status;
                    let line =
                        format!("{} of {} nodes done", status.number_ready, status.desired_number_scheduled);
                    if line != said {
                        println!("{line}");
                        said = line;
                    }
                    if found.is_done() {
                        return Ok(0);
                    }
                }
                Err(error) => {
                    failures += 1;
                    eprintln!("berth: {error:#}");
                    if failures >= FAILURES {
                        bail!("gave up after {failures} looks at {path}");
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

async fn look(api: &Api, path: &str) -> Result<DaemonSet> {
    let body = api.get(path).await?;
    serde_json::from_slice(&body).with_context(|| format!("reading the answer of {path}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn done_is_when_all_pods_of_this_generation_are_ready() {
        let done = |json: &str| serde_json::from_str::<DaemonSet>(json).unwrap().is_done();
        assert!(!done("{}"), "not looked at by its controller yet");
        let status = |observed: i64, desired: i64, ready: i64| {
            format!(
                "{{\"metadata\":{{\"generation\":1}},\"status\":{{\"observedGeneration\":{observed},\
                 \"desiredNumberScheduled\":{desired},\"updatedNumberScheduled\":{desired},\"numberReady\":{ready}}}}}"
            )
        };
        assert!(!done(&status(0, 0, 0)) && !done(&status(1, 3, 2)));
        assert!(done(&status(1, 3, 3)) && done(&status(1, 0, 0)), "no node is selected: nothing to do");
    }
}
