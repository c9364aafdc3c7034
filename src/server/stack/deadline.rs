//! Ends calls in time: when the client's own deadline (`grpc-timeout`) is over, or the server's cap, whichever is first.
//!
//! What the call has set going in a pod's task goes on there; a retry joins it.

use std::future::Future;
use std::time::Duration;

use http::{HeaderMap, Response};
use tonic::Status;
use tonic::body::Body;

use super::{Around, Call};

/// The cap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub(super) Duration);

impl Around for Deadline {
    fn around<F, E>(
        &self,
        call: Call,
        headers: &HeaderMap,
        inner: F,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Send + 'static,
    {
        let cap = call.capped.then_some(self.0);
        let asked = headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?)).map(early);
        let limit = match (asked, cap) {
            (Some(asked), Some(cap)) => Some(asked.min(cap)),
            (asked, cap) => asked.or(cap),
        };
        async move {
            let Some(limit) = limit else { return inner.await };
            match tokio::time::timeout(limit, inner).await {
                Ok(result) => result,
                Err(_) => {
                    let message = format!("{} was not done within {limit:?}", call.name);
                    Ok(Status::deadline_exceeded(message).into_http())
                }
            }
        }
    }
}

/// A little before: tonic has timers of its own on the same header, in the server and in its client, and both would say
/// CANCELLED instead.
fn early(asked: Duration) -> Duration {
    asked - (asked / 10).min(Duration::from_millis(100))
}

/// Reads `grpc-timeout`: at most 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units() {
        assert_eq!(timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("5m"), Some(Duration::from_millis(5)));
        for wrong in ["", "S", "10", "-1S", "123456789S", "1x", "1é"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }
}
