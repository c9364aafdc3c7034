//! Moving one blob: in order, from where it stopped, and not for ever.

use crate::image::error::Chain;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use reqwest::Response;

use super::endpoint::{Ask, Endpoint};
use super::pace::Pace;
use super::{Error, Session};
use crate::image::digest::Digest;

/// How often a transfer may break without having moved before another host is tried.
const BREAKS: u32 = 3;
/// Pause after a break.
const PAUSE: Duration = Duration::from_millis(200);
/// Takes what comes, in order. An error ends the transfer: whoever wanted the bytes is gone.
pub(crate) trait Sink {
    /// Takes a piece.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every byte came.
    Whole,
    /// The sink wants no more.
    Refused,
}

/// How far a transfer is, and how fast: over all its connections. One that brings a byte each time would go on for ever.
#[derive(Debug)]
struct Way {
    at: u64,
    pace: Pace,
}

impl Session {
    /// Feeds a blob's bytes from `start` on into `sink`.
    pub(crate) async fn blob(
        &self,
        digest: Digest,
        size: u64,
        start: u64,
        sink: &mut impl Sink,
    ) -> Result<Ended, Error> {
        let what = format!("{digest} of {}", self.reference.repository());
        let mut way = Way { at: start, pace: Pace::new(self.progress_timeout) };
        let mut last = Error::NoHost("give content");
        for endpoint in self.able(|host| host.pull) {
            let mut breaks = 0;
            way.pace = Pace::new(self.progress_timeout);
            while breaks < BREAKS {
                let before = way.at;
                match self.run(endpoint, digest, size, &mut way, &what, sink).await {
                    Ok(ended) => return Ok(ended),
                    // Asking has its own tries; an answer that is clear is not asked for again.
                    Err(error @ (Error::Transport { .. } | Error::Truncated { .. })) => {
                        breaks = if way.at > before { 1 } else { breaks + 1 };
                        tracing::debug!(error = %Chain(&error), way.at, "a transfer broke, going on from there");
                        let given_up = endpoint.is_given_up(&error);
                        last = error;
                        if given_up {
                            break;
                        }
                        if let Some(meter) = &self.meter {
                            meter.retried();
                        }
                        tokio::time::sleep(PAUSE).await;
                        if way.pace.is_too_slow(0, PAUSE) {
                            last = self.stalled(endpoint, &what);
                            endpoint.is_given_up(&last);
                            break;
                        }
                    }
                    Err(error) => {
                        endpoint.is_given_up(&error);
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// One connection's worth.
    async fn run(
        &self,
        endpoint: &Endpoint,
        digest: Digest,
        size: u64,
        way: &mut Way,
        what: &str,
        sink: &mut impl Sink,
    ) -> Result<Ended, Error> {
        let Way { at, pace } = way;
        if *at == size {
            return Ok(Ended::Whole);
        }
        let ask = Ask { path: format!("blobs/{digest}"), from: Some(*at), what, ..Ask::default() };
        let mut response = self.ask(endpoint, &ask).await?;
        let mut skip = skipped(&response, *at);
        loop {
            let waiting = Instant::now();
            let Some(mut chunk) = self.patiently(endpoint, what, response.chunk()).await? else { break };
            if pace.is_too_slow(chunk.len() as u64, waiting.elapsed()) {
                return Err(self.stalled(endpoint, what));
            }
            if let Some(meter) = &self.meter {
                meter.received(chunk.len());
            }
            // A registry that does not know ranges begins again.
            let skipping = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipping as u64;
            let chunk = chunk.split_off(skipping);
            if chunk.is_empty() {
                continue;
            }
            if *at + chunk.len() as u64 > size {
                return Err(Error::TooLong {
                    host: endpoint.host.name(),
                    what: what.to_owned(),
                    limit: size,
                });
            }
            *at += chunk.len() as u64;
            if !sink.take(chunk).await {
                return Ok(Ended::Refused);
            }
        }
        match *at == size {
            true => Ok(Ended::Whole),
            false => {
                Err(Error::Truncated { host: endpoint.host.name(), what: what.to_owned(), got: *at, size })
            }
        }
    }
}

/// How much of the answer comes before what was asked for.
fn skipped(response: &Response, at: u64) -> u64 {
    if at == 0 || response.status() != StatusCode::PARTIAL_CONTENT {
        return at;
    }
    let first = response
        .headers()
        .get(http::header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.strip_prefix("bytes "))
        .and_then(|text| text.split('-').next())
        .and_then(|first| first.parse::<u64>().ok());
    // An answer from a later point would leave a hole; the digest finds that out.
    at.saturating_sub(first.unwrap_or(at))
}
