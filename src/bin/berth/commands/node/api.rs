//! The cluster's API server, asked from a pod.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the largest answer.
const ANSWER_LIMIT: usize = 4 << 20;

/// How the API server is reached.
#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    /// The API server [default: the pod's]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Directory of token and ca.crt
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    account: PathBuf,
}

/// The API server.
#[derive(Clone, Debug)]
pub(super) struct Api {
    server: String,
    account: PathBuf,
    client: reqwest::Client,
}

impl Api {
    /// The one that options, or Kubernetes' variables, name.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let server = match &options.server {
            Some(server) => server.clone(),
            None => pod_server()?,
        };
        Ok(Self { server, account: options.account.clone(), client: client(&options.account)? })
    }

    /// Reads a path. Returns the body of a good answer.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let url = format!("{}{path}", self.server);
        self.ask(&url, self.client.get(&url)).await
    }

    /// Changes an object by a JSON merge patch (RFC 7396).
    pub(super) async fn merge(&self, path: &str, patch: &serde_json::Value) -> Result<()> {
        let url = format!("{}{path}", self.server);
        let kind = (reqwest::header::CONTENT_TYPE, "application/merge-patch+json");
        self.ask(&url, self.client.patch(&url).header(kind.0, kind.1).body(patch.to_string())).await?;
        Ok(())
    }

    async fn ask(&self, url: &str, request: reqwest::RequestBuilder) -> Result<Vec<u8>> {
        // Read each time: the token is renewed.
        let file = self.account.join("token");
        let token = std::fs::read_to_string(&file)
            .with_context(|| format!("reading the token {}", file.display()))?;
        let asking = || format!("asking {url}");
        let mut answer = request.bearer_auth(token.trim()).send().await.with_context(asking)?;
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
        Ok(body)
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
