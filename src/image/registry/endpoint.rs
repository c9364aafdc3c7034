//! A host of a repository, and what it is asked for.

use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderValue, Method};
use parking_lot::RwLock;
use reqwest::Client;
use url::Url;

use super::Error;
use super::content::Content;
use super::credentials::Secret;
use super::hosts::Host;

/// A host with what is needed to ask it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) host: Host,
    pub(super) client: Client,
    pub(super) secret: Secret,
    pub(super) authorization: RwLock<Option<HeaderValue>>,
    /// One token request at a time: parallel downloads share its outcome.
    pub(super) renewing: tokio::sync::Mutex<()>,
    /// Another host may give the same: this one is not waited for.
    pub(super) replaceable: bool,
    /// It could not be connected to in this session, or stood still.
    pub(super) unreachable: AtomicBool,
}

impl Endpoint {
    /// Whether another host is asked right away, and this one no more in this session: it can't be connected to, or stands
    /// still, which takes long to find out.
    pub(super) fn is_given_up(&self, error: &Error) -> bool {
        let gone = match error {
            Error::Transport { source, .. } => source.is_connect(),
            Error::Stalled { .. } => true,
            _ => false,
        };
        if gone && self.replaceable {
            self.unreachable.store(true, Ordering::Relaxed);
        }
        gone && self.replaceable
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// `manifests/<target>` or `blobs/<digest>`.
    pub(super) path: String,
    /// Where the registry said to go on, instead of the path.
    pub(super) url: Option<Url>,
    pub(super) query: Vec<(&'static str, String)>,
    /// What goes along.
    pub(super) content: Option<Content>,
    pub(super) accept: Option<&'static str>,
    pub(super) from: Option<u64>,
    /// In words.
    pub(super) what: &'a str,
}

/// Where a redirect leads to.
pub(super) fn follow(endpoint: &Endpoint, from: &Url, target: &HeaderValue) -> Result<Url, Error> {
    let shown = String::from_utf8_lossy(target.as_bytes());
    // What follows a question mark may be a signature.
    let shown: String = shown.split('?').next().unwrap_or_default().chars().take(200).collect();
    let refused = |problem| Error::Redirect { host: endpoint.host.name(), target: shown, problem };
    let joined = target.to_str().ok().and_then(|text| from.join(text).ok());
    match joined {
        Some(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err(refused("it is not an http or https address")),
    }
}
