//! The node's label: whether pods that want Berth can run there.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::Api;

/// `true` while the node is ready, `false` while it is not, gone when nobody looks after it.
pub(super) const LABEL: &str = "berth.dev/ready";
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(10);
/// After the API server did not take it.
const RETRY: Duration = Duration::from_secs(2);
/// What somebody else made of the label is put right after so long.
const AGAIN: Duration = Duration::from_secs(300);

/// A node whose label is kept.
#[derive(Clone, Debug)]
pub(super) struct Node {
    api: Api,
    path: String,
}

impl Node {
    /// The node of this name.
    pub(super) fn new(api: Api, name: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
            bail!("{name:?} is no node's name");
        }
        Ok(Self { api, path: format!("/api/v1/nodes/{name}") })
    }

    /// Keeps the label in step with what `ready` says, for as long as it is polled.
    pub(super) async fn keep<F: Future<Output = bool>>(
        &self,
        ready: impl Fn() -> F,
    ) -> std::convert::Infallible {
        let mut written: Option<(bool, Instant)> = None;
        loop {
            let now = ready().await;
            let mut pause = PERIOD;
            let known = written.is_some_and(|(was, at)| was == now && at.elapsed() < AGAIN);
            if !known {
                match self.write(json!(now.to_string())).await {
                    Ok(()) => written = Some((now, Instant::now())),
                    Err(error) => {
                        eprintln!("berth: labelling the node: {error:#}");
                        pause = RETRY;
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes the label away.
    pub(super) async fn clear(&self) {
        if let Err(error) = self.write(Value::Null).await {
            eprintln!("berth: taking the node's label away: {error:#}");
        }
    }

    async fn write(&self, value: Value) -> Result<()> {
        self.api.merge(&self.path, &json!({ "metadata": { "labels": { LABEL: value } } })).await
    }
}
