//! Answers that are none: what they mean, what they say, and whether asking again may help.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use reqwest::Response;

use super::client::{Ask, Endpoint};
use super::{Error, Session};

/// How much of an error's body is looked at, and for how long.
const DETAIL_LIMIT: usize = 16 << 10;
const DETAIL_TIME: Duration = Duration::from_secs(2);

impl Session {
    /// An answer that is none, in our words and with the registry's.
    pub(super) async fn refusal(&self, endpoint: &Endpoint, ask: &Ask<'_>, response: Response) -> Error {
        let status = response.status();
        let wait = retry_after(response.headers());
        let (host, what) = (endpoint.host.name(), ask.what.to_owned());
        let mut detail = self.detail(response).await;
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
    async fn detail(&self, mut response: Response) -> String {
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
}

/// Whether trying again may help.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    Duration::try_from(date - time::OffsetDateTime::now_utc()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert!(read("Fri, 31 Dec 2100 23:59:59 GMT").unwrap() > Duration::from_secs(1000));
        assert_eq!(read("soon"), None);
    }
}
