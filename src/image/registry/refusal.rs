//! Answers that are none: what they mean and what they say.

use std::time::Duration;

use reqwest::Response;

use super::Error;
use super::endpoint::{Ask, Endpoint};
use super::retrying::retry_after;

/// How much of an error's body is looked at, and for how long.
const DETAIL_LIMIT: usize = 16 << 10;
const DETAIL_TIME: Duration = Duration::from_secs(2);

/// An answer that is none, in our words and with the registry's.
pub(super) async fn refusal(endpoint: &Endpoint, ask: &Ask<'_>, response: Response) -> Error {
    let status = response.status();
    let wait = retry_after(response.headers());
    let (host, what) = (endpoint.host.name(), ask.what.to_owned());
    let mut detail = detail(response).await;
    match status.as_u16() {
        401 => Error::Unauthorized { host, what, detail },
        403 => Error::Denied { host, what, detail },
        404 => Error::NotFound { host, what, detail },
        429 => {
            if let Some(wait) = wait {
                detail = format!(" (try again in {} s){detail}", wait.as_secs());
            }
            Error::RateLimited { host, what, detail }
        }
        status => Error::Status { host, status, what, detail },
    }
}

/// The messages in an error's body (distribution-spec, "Error Codes"), for people.
async fn detail(mut response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Message>,
    }
    #[derive(serde::Deserialize)]
    struct Message {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > DETAIL_LIMIT {
                return;
            }
        }
    };
    // For all of it: one that trickles would hold the call up for hours.
    if tokio::time::timeout(DETAIL_TIME, reading).await.is_err() || bytes.len() > DETAIL_LIMIT {
        return String::new();
    }
    let Ok(body) = serde_json::from_slice::<Body>(&bytes) else { return String::new() };
    let messages: Vec<String> = body
        .errors
        .iter()
        .take(3)
        .map(|error| if error.message.is_empty() { &error.code } else { &error.message })
        .map(|text| text.chars().filter(|c| !c.is_control()).take(200).collect())
        .collect();
    if messages.is_empty() { String::new() } else { format!(": {}", messages.join(", ")) }
}
