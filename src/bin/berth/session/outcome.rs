//! How a session ended, as the server tells it.

use anyhow::{Context, Result};
use serde::Deserialize;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command ended well, or the container attached to has ended.
    Done,
    /// The command ended with this code.
    Exit(i32),
    /// It could not be done.
    Failed(String),
    /// The daemon ended the session before that, for this reason.
    Cut(String),
    /// The person left; it runs on.
    Detached,
    /// The connection ended without a word.
    Lost,
}

/// The fields of `metav1.Status` that say something to us.
#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Outcome {
    /// Reads it from the error channel's JSON; without any the connection was lost.
    pub(super) fn read(json: &[u8]) -> Result<Self> {
        if json.is_empty() {
            return Ok(Self::Lost);
        }
        let status: Status = serde_json::from_slice(json)
            .context("berthd's streaming server told the outcome in a form unknown")?;
        if status.status == "Success" {
            return Ok(Self::Done);
        }
        let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
        if status.reason == "NonZeroExitCode"
            && let Some(code) = code.and_then(|cause| cause.message.parse().ok())
        {
            return Ok(Self::Exit(code));
        }
        if status.reason == "ServiceUnavailable" {
            return Ok(Self::Cut(status.message));
        }
        // The cause is the message without what the API server's users are used to read in front.
        let cause =
            status.details.causes.into_iter().map(|cause| cause.message).find(|text| !text.is_empty());
        Ok(Self::Failed(cause.unwrap_or(status.message)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn outcomes_are_told_apart() {
        assert_eq!(Outcome::read(b"").unwrap(), Outcome::Lost);
        assert_eq!(Outcome::read(br#"{"status":"Success"}"#).unwrap(), Outcome::Done);
        let exit = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(Outcome::read(exit).unwrap(), Outcome::Exit(7));
        let failed = br#"{"status":"Failure","message":"Internal error occurred: x","reason":"InternalError","details":{"causes":[{"message":"x"}]}}"#;
        assert_eq!(Outcome::read(failed).unwrap(), Outcome::Failed("x".into()));
        let cut = br#"{"status":"Failure","message":"berthd is being stopped","reason":"ServiceUnavailable","code":503}"#;
        assert_eq!(Outcome::read(cut).unwrap(), Outcome::Cut("berthd is being stopped".into()));
        assert!(Outcome::read(b"garbage").is_err());
    }
}
