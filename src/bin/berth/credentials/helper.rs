//! `docker-credential-NAME`: programs that keep credentials elsewhere (docker-credential-helpers, "Development"). They read a
//! registry's key, or JSON, from standard input and answer on standard output.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How long a helper may take: some ask a person.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const LONGEST: u64 = 1 << 20;
/// What helpers say when they have nothing (docker-credential-helpers, credentials/error.go).
const NOTHING: [&str; 2] = ["credentials not found", "no credentials server URL"];

/// A helper.
#[derive(Debug)]
pub(super) struct Helper {
    program: String,
}

/// What a helper keeps.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    #[serde(default)]
    pub(super) username: String,
    #[serde(default)]
    pub(super) secret: String,
}

#[derive(Serialize)]
struct Kept<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    #[serde(rename = "Username")]
    username: &'a str,
    #[serde(rename = "Secret")]
    secret: &'a str,
}

impl Helper {
    /// The helper of that name, a program in `PATH`.
    pub(super) fn new(name: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !name.bytes().all(plain) {
            bail!("`{name}` in Docker's configuration is no name of a credential helper");
        }
        Ok(Self { program: format!("docker-credential-{name}") })
    }

    /// What it keeps for a registry.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Found>> {
        match self.run("get", key.as_bytes()).await? {
            None => Ok(None),
            Some(answer) => {
                // The answer is not quoted: it holds a secret.
                let found: Found = serde_json::from_slice(&answer)
                    .map_err(|_| anyhow!("{} did not answer with credentials", self.program))?;
                Ok((!found.username.is_empty() || !found.secret.is_empty()).then_some(found))
            }
        }
    }

    /// Has it keep a user's password.
    pub(super) async fn store(&self, key: &str, username: &str, secret: &str) -> Result<()> {
        let kept = serde_json::to_vec(&Kept { server: key, username, secret })?;
        self.run("store", &kept).await.map(drop)
    }

    /// Has it forget. `false` when there was nothing.
    pub(super) async fn erase(&self, key: &str) -> Result<bool> {
        Ok(self.run("erase", key.as_bytes()).await?.is_some())
    }

    /// `None`: it has nothing of that name.
    async fn run(&self, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
        let context = || format!("{} {verb}", self.program);
        let work = async {
            let mut child = Command::new(&self.program)
                .arg(verb)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .kill_on_drop(true)
                .spawn()
                .with_context(|| {
                    format!(
                        "{} (named by Docker's configuration) can't be run: install it, or take it out",
                        self.program
                    )
                })?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read what it does not need is fine.
                let _ = stdin.write_all(input).await;
            }
            let mut answer = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout.take(LONGEST + 1).read_to_end(&mut answer).await.with_context(context)?;
            }
            if answer.len() as u64 > LONGEST {
                bail!("{} {verb} answers with more than {LONGEST} bytes", self.program);
            }
            let status = child.wait().await.with_context(context)?;
            let said = String::from_utf8_lossy(&answer).trim().to_owned();
            if status.success() {
                return Ok(Some(answer));
            }
            if NOTHING.iter().any(|nothing| said.contains(nothing)) {
                return Ok(None);
            }
            let said: String = said.chars().take(200).collect();
            Err(anyhow!("{} {verb} failed ({status}): {said}", self.program))
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| anyhow!("{} {verb} did not answer in {} s", self.program, PATIENCE.as_secs()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        assert!(Helper::new("pass").is_ok() && Helper::new("ecr-login").is_ok());
        for wrong in ["../x", "a/b", "a b", "a;b"] {
            assert!(Helper::new(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let Ok(helper) = Helper::new("berth-test-none") else { return };
        let error = helper.get("a.test").await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains("docker-credential-berth-test-none"), "{error}");
    }
}
