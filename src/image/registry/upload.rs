//! Giving a registry one blob or manifest (OCI distribution-spec, "Push").
//!
//! ```text
//! HEAD ── there ─────────────────────────────────────────────> Exists
//!   └─ POST ?mount=…&from=… ── 201 ──────────────────────────> Mounted
//!        └─ 202: an upload ──┬─ small: PUT with all of it ───> Uploaded
//!                            └─ PATCH piece by piece, PUT ───> Uploaded
//! ```
//!
//! An upload that breaks goes on from where the registry says it is, or begins anew. Registries that do not take pieces get
//! the whole in one request.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{LOCATION, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::content::{Content, LOOK, Source};
use super::endpoint::{Ask, Endpoint, follow};
use super::refusal::refusal;
use super::retrying::is_passing;
use super::{Error, Session};
use crate::image::digest::Digest;
use crate::image::error::Chain;
use crate::image::reference::Target;

/// Blobs up to this size go in one request; larger ones in pieces of it, so that what broke can go on.
const PIECE: u64 = 16 << 20;
/// How often an upload may break without having moved.
const BREAKS: u32 = 4;
/// First pause after a break; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

/// How a registry came to have a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    Exists,
    Mounted,
    Uploaded,
}

/// A blob on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// `None`: it is not here; the registry may have it.
    pub(crate) source: Option<Source>,
    /// Repositories of the same registry that may hold it.
    pub(crate) elsewhere: &'a [String],
}

/// Why one try ended.
enum Broken {
    /// Trying again may help.
    Passing(Error),
    Final(Error),
}

impl Session {
    /// The host that takes pushes: the first one that may.
    fn taker(&self) -> Result<&Endpoint, Error> {
        self.endpoints.iter().find(|endpoint| endpoint.host.push).ok_or(Error::NoHost("take pushes"))
    }

    /// Its name, for people.
    pub(crate) fn taker_name(&self) -> Result<String, Error> {
        Ok(self.taker()?.host.name())
    }

    /// Has the registry hold a blob. `None` when it lacks it and there is nothing to send. `told` hears of bytes sent.
    pub(crate) async fn give(
        &self,
        blob: Outgoing<'_>,
        told: &(impl Fn(u64) + Sync),
    ) -> Result<Option<Given>, Error> {
        let endpoint = self.taker()?;
        let what = format!("{} of {}", blob.digest, self.reference.repository());
        if self.holds(endpoint, &blob.digest, &what).await? {
            return Ok(Some(Given::Exists));
        }
        let mut opened = None;
        for from in blob.elsewhere {
            let query = vec![("mount", blob.digest.to_string()), ("from", from.clone())];
            match self.begin(endpoint, &what, query).await {
                Ok(None) => return Ok(Some(Given::Mounted)),
                Ok(upload) => {
                    opened = upload;
                    break;
                }
                // It may not be allowed to look there.
                Err(error) => {
                    tracing::debug!(from, error = %Chain(&error), "a blob could not be mounted");
                }
            }
        }
        let Some(source) = blob.source else { return Ok(None) };
        let mut upload = Upload { session: self, endpoint, what: &what, source, size: blob.size, told };
        upload.run(opened, blob.digest).await?;
        Ok(Some(Given::Uploaded))
    }

    async fn holds(&self, endpoint: &Endpoint, digest: &Digest, what: &str) -> Result<bool, Error> {
        let ask = Ask { method: Method::HEAD, path: format!("blobs/{digest}"), what, ..Ask::default() };
        match self.ask(endpoint, &ask).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload and says where; `None` when the blob is there by that.
    async fn begin(
        &self,
        endpoint: &Endpoint,
        what: &str,
        query: Vec<(&'static str, String)>,
    ) -> Result<Option<Url>, Error> {
        let mounting = !query.is_empty();
        let content = Content::whole(Source::Bytes(Bytes::new()), 0, "application/octet-stream");
        let path = "blobs/uploads/".to_owned();
        let ask = Ask { method: Method::POST, path, query, content: Some(content), what, ..Ask::default() };
        let response = self.ask(endpoint, &ask).await?;
        if mounting && response.status() == StatusCode::CREATED {
            return Ok(None);
        }
        next(endpoint, &response, what).map(Some)
    }

    /// Puts a manifest or index under `target`, a tag or digest.
    pub(crate) async fn put_manifest(
        &self,
        target: &Target,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), Error> {
        let what = format!("the manifest {target} of {}", self.reference.repository());
        let content = Content::whole(Source::Bytes(bytes.clone().into()), bytes.len() as u64, media_type);
        let path = format!("manifests/{target}");
        let ask = Ask { method: Method::PUT, path, content: Some(content), what: &what, ..Ask::default() };
        self.ask(self.taker()?, &ask).await.map(drop)
    }
}

/// Where an upload goes on.
fn next(endpoint: &Endpoint, response: &Response, what: &str) -> Result<Url, Error> {
    let Some(target) = response.headers().get(LOCATION) else {
        return Err(Error::Protocol {
            host: endpoint.host.name(),
            what: what.to_owned(),
            problem: "does not say where an upload goes on",
        });
    };
    follow(endpoint, response.url(), target)
}

/// One blob's upload, over all its tries.
struct Upload<'a, F> {
    session: &'a Session,
    endpoint: &'a Endpoint,
    what: &'a str,
    source: Source,
    size: u64,
    told: &'a F,
}

impl<F: Fn(u64) + Sync> Upload<'_, F> {
    async fn run(&mut self, opened: Option<Url>, digest: Digest) -> Result<(), Error> {
        let (mut pieces, mut breaks, mut pause) = (self.size > PIECE, 0, PAUSE);
        let mut at = 0;
        let mut opened = opened;
        loop {
            let url = match opened.take() {
                Some(url) => url,
                None => {
                    at = 0;
                    match self.session.begin(self.endpoint, self.what, Vec::new()).await? {
                        Some(url) => url,
                        None => return Ok(()),
                    }
                }
            };
            let before = at;
            let mut place = url;
            let tried = match pieces {
                true => self.in_pieces(&mut place, &mut at, digest).await,
                false => self.at_once(place.clone(), digest).await,
            };
            match tried {
                Ok(()) => return Ok(()),
                // Not all registries take pieces.
                Err(Broken::Final(Error::Status { status, .. })) if pieces && status < 500 => {
                    tracing::debug!(what = self.what, status, "no pieces: sending the whole");
                    pieces = false;
                }
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Passing(error)) => {
                    if at > before {
                        (breaks, pause) = (0, PAUSE);
                    }
                    breaks += 1;
                    if breaks > BREAKS {
                        return Err(error);
                    }
                    tracing::debug!(error = %Chain(&error), at, "an upload broke");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    if pieces && let Some((url, reached)) = self.reached(&place).await {
                        (opened, at) = (Some(url), reached);
                    }
                }
            }
        }
    }

    /// All in one request.
    async fn at_once(&self, url: Url, digest: Digest) -> Result<(), Broken> {
        let content = Content::whole(self.source.clone(), self.size, "application/octet-stream");
        self.send(Method::PUT, url, Some(digest), content, 0).await.map(drop)
    }

    /// In pieces, from `at` on; both move with what the registry took.
    async fn in_pieces(&self, url: &mut Url, at: &mut u64, digest: Digest) -> Result<(), Broken> {
        while *at < self.size {
            let length = PIECE.min(self.size - *at);
            let content = Content::piece(self.source.clone(), *at, length);
            let response = self.send(Method::PATCH, url.clone(), None, content, *at).await?;
            *url = next(self.endpoint, &response, self.what).map_err(Broken::Final)?;
            *at += length;
        }
        let nothing = Content::whole(Source::Bytes(Bytes::new()), 0, "application/octet-stream");
        self.send(Method::PUT, url.clone(), Some(digest), nothing, self.size).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        digest: Option<Digest>,
        content: Content,
        before: u64,
    ) -> Result<Response, Broken> {
        let sent = content.sent();
        let query = digest.map(|digest| ("digest", digest.to_string())).into_iter().collect();
        let ask =
            Ask { method, url: Some(url), query, content: Some(content), what: self.what, ..Ask::default() };
        let mut asking = pin!(self.session.ask_authorized(self.endpoint, &ask));
        let response = loop {
            match tokio::time::timeout(LOOK, &mut asking).await {
                Ok(response) => break response,
                Err(_) => (self.told)(before + sent.load(Ordering::Relaxed)),
            }
        };
        match response {
            Ok(response) if response.status().is_success() => {
                (self.told)(before + sent.load(Ordering::Relaxed));
                Ok(response)
            }
            Ok(response) => {
                // A registry that lost its place, or the whole upload, is asked where it is.
                let lost = matches!(
                    response.status(),
                    StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND | StatusCode::GONE
                );
                let passing = is_passing(response.status()) || lost;
                let error = refusal(self.endpoint, &ask, response).await;
                Err(if passing { Broken::Passing(error) } else { Broken::Final(error) })
            }
            Err(error @ Error::Transport { .. }) => Err(Broken::Passing(error)),
            Err(error) => Err(Broken::Final(error)),
        }
    }

    /// How far the registry got with an upload. `None`: it does not know it any more.
    async fn reached(&self, url: &Url) -> Option<(Url, u64)> {
        let ask = Ask { url: Some(url.clone()), what: self.what, ..Ask::default() };
        let response = self.session.ask(self.endpoint, &ask).await.ok()?;
        let reached = response.headers().get(RANGE).map_or(Some(0), last_byte)?;
        let url = next(self.endpoint, &response, self.what).unwrap_or_else(|_| url.clone());
        (reached <= self.size).then_some((url, reached))
    }
}

/// Bytes up to and including the last of `0-LAST`. Nothing is `0-0`, as the reference registry writes it; one byte as well,
/// but nobody sends single bytes.
fn last_byte(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    let (_, last) = text.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.parse().ok()?;
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_say_where_to_go_on() {
        let read = |text: &str| last_byte(&text.parse().unwrap());
        assert_eq!(read("0-0"), Some(0));
        assert_eq!(read("0-1023"), Some(1024));
        assert_eq!(read("bytes=0-9"), Some(10));
        for wrong in ["", "x", "0-x", "5"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
