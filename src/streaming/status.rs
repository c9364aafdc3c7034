//! The outcome of a command as the client wants to read it on the error channel.

use bytes::Bytes;
use serde_json::json;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ended with exit code 0, or the container attached to has ended.
    Success,
    /// The command ended with another exit code.
    Exit(i32),
    /// It could not be done.
    Failed(String),
    /// We ended the session before that, for this reason.
    Cut(String),
}

impl Outcome {
    /// `metav1.Status` as JSON.
    fn json(&self) -> Vec<u8> {
        let value = match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
            Self::Cut(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "ServiceUnavailable",
                "code": 503,
            }),
        };
        value.to_string().into_bytes()
    }

    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::Exit(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(message) => format!("Internal error occurred: {message}"),
            Self::Cut(message) => message.clone(),
        }
    }

    /// What goes over the error channel: a status since version 4 of the protocol, before it a text, and nothing on success.
    pub(super) fn encode(&self, as_status: bool) -> Bytes {
        if as_status { self.json().into() } else { self.text().into() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_exit_code_is_found_where_client_go_looks_for_it() {
        let status: serde_json::Value = serde_json::from_slice(&Outcome::Exit(3).encode(true)).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }

    #[test]
    fn old_protocols_get_text() {
        assert!(Outcome::Success.encode(false).is_empty());
        assert!(Outcome::Failed("no shell".into()).encode(false).ends_with(b"no shell"));
    }
}
