//! `berth node await-daemonset`: waits in a pod until all pods of a DaemonSet are ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Deserialize;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Looks in a row that fail before it gives up; the pod's own deadline and retries come on top.
const FAILURES: u32 = 30;
/// Bytes of the largest answer.
const ANSWER_LIMIT: usize = 4 << 20;

/// Options of `node await-daemonset`.
#[derive(Debug, Args)]
pub(crate) struct Await {
    /// NAMESPACE/NAME
    #[arg(value_name = "DAEMONSET")]
    daemonset: String,
    /// The API server [default: the pod's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Directory of token and ca.crt
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    account: PathBuf,
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
        let server = match &self.server {
            Some(server) => server.clone(),
            None => pod_server()?,
        };
        let url = format!("{server}/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let client = client(&self.account)?;
        let mut failures = 0;
        let mut said = String::new();
        loop {
            match look(&client, &url, &self.account).await {
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
                        bail!("gave up after {failures} looks at {url}");
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

/// The API server as Kubernetes tells it to every pod.
fn pod_server() -> Result<String> {
    let variable = |name: &str| {
        std::env::var(name)
            .with_context(|| format!("{name} is not set: not in a pod? --server takes the URL"))
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(format!("https://{host}:{port}"))
}

fn client(account: &Path) -> Result<reqwest::Client> {
    // Whoever comes first sets it for the process; there is but one to choose from.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder().timeout(PATIENCE).no_proxy();
    let file = account.join("ca.crt");
    if let Ok(pem) = std::fs::read(&file) {
        let ca = reqwest::Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("reading {} as certificates", file.display()))?;
        builder = builder.tls_certs_only(ca);
    }
    builder.build().context("making an HTTP client")
}

async fn look(client: &reqwest::Client, url: &str, account: &Path) -> Result<DaemonSet> {
    // Read each time: the token is renewed.
    let file = account.join("token");
    let token =
        std::fs::read_to_string(&file).with_context(|| format!("reading the token {}", file.display()))?;
    let asking = || format!("asking {url}");
    let mut answer = client.get(url).bearer_auth(token.trim()).send().await.with_context(asking)?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.with_context(asking)? {
        if body.len() + part.len() > ANSWER_LIMIT {
            return Err(anyhow!("{url} answered more than {ANSWER_LIMIT} bytes"));
        }
        body.extend_from_slice(&part);
    }
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
        return Err(anyhow!("{url} answered {status}: {text}"));
    }
    serde_json::from_slice(&body).with_context(|| format!("reading the answer of {url}"))
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
