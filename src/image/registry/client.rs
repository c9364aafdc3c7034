//! Asking the hosts of a repository, one after the other, with patience that ends.

use crate::image::error::Chain;
use crate::meter::Pulls;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::RwLock;
use reqwest::Response;
use url::Url;

use super::credentials::{self, Credentials, Secret};
use super::endpoint::{Ask, Endpoint, follow};
use super::hosts::{self, Host};
use super::pace::Pace;
use super::refusal::refusal;
use super::retrying::{PAUSE, REDIRECTS, RETRIES, RETRY_AFTER_LIMIT, is_passing, retry_after};
use super::tls::Clients;
use super::{Error, auth, challenge};
use crate::image::digest::Digest;
use crate::image::manifest::{self, MANIFEST_LIMIT};
use crate::image::reference::{Reference, Target};

/// What sessions have in common.
#[derive(Debug)]
pub(crate) struct Registry {
    config_path: Vec<PathBuf>,
    progress_timeout: Duration,
    clients: Clients,
    meter: Option<Pulls>,
}

/// One repository, for one pull.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) reference: Reference,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) progress_timeout: Duration,
    pub(super) meter: Option<Pulls>,
    /// What tokens are asked for when the registry does not say.
    scope: String,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
    /// Only to see whether credentials are good.
    Login,
}

/// A manifest or index as a registry has it, held against its digest.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Registry {
    pub(crate) fn new(config_path: Vec<PathBuf>, progress_timeout: Duration, meter: Option<Pulls>) -> Self {
        Self { config_path, progress_timeout, clients: Clients::default(), meter }
    }

    /// Reads host files and certificates. Blocking for as long as those files take.
    pub(crate) fn session(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        purpose: Purpose,
    ) -> Result<Session, Error> {
        let hosts = hosts::load(&self.config_path, reference.host(), reference.endpoint())?;
        // The last one that gives all is not replaceable.
        let sure = hosts.iter().rposition(|host| host.resolve && host.pull).unwrap_or(0);
        let mut endpoints = Vec::new();
        for (place, host) in hosts.into_iter().enumerate() {
            let client = self.clients.get(&host.tls)?;
            let secret = match credentials {
                Some(credentials) => credentials.secret(&host.name(), reference.host())?,
                None => Secret::None,
            };
            let authorization = match &secret {
                Secret::Bearer(token) => Some(credentials::bearer(token)?),
                _ => None,
            };
            endpoints.push(Endpoint {
                host,
                client,
                secret,
                authorization: RwLock::new(authorization),
                renewing: tokio::sync::Mutex::default(),
                replaceable: purpose == Purpose::Pull && place < sure,
                unreachable: AtomicBool::new(false),
            });
        }
        let (progress_timeout, meter) = (self.progress_timeout, self.meter.clone());
        let scope = match purpose {
            Purpose::Pull => format!("repository:{}:pull", reference.path()),
            Purpose::Push => format!("repository:{}:pull,push", reference.path()),
            Purpose::Login => String::new(),
        };
        Ok(Session { reference: reference.clone(), endpoints, progress_timeout, meter, scope })
    }
}

impl Session {
    /// The hosts that may be asked for something, in their order, without those that were given up: a mirror that is gone must
    /// not cost its time-out for each layer.
    pub(super) fn able(&self, capable: impl Fn(&Host) -> bool) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .iter()
            .filter(move |endpoint| capable(&endpoint.host) && !endpoint.unreachable.load(Ordering::Relaxed))
    }

    /// What the tag points to now, without fetching it. `None` when the registry does not say.
    pub(crate) async fn head(&self) -> Result<Option<Digest>, Error> {
        let what = format!("the manifest of {}", self.reference);
        let ask = Ask {
            method: Method::HEAD,
            path: format!("manifests/{}", self.reference.target()),
            accept: Some(manifest::ACCEPT),
            what: &what,
            ..Ask::default()
        };
        let mut last = Error::NoHost("resolve tags");
        for endpoint in self.able(|host| host.resolve) {
            match self.ask(endpoint, &ask).await {
                Ok(response) => return Ok(told_digest(response.headers())),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Fetches the manifest or index that the reference names.
    pub(crate) async fn resolve(&self) -> Result<Resolved, Error> {
        let what = format!("the manifest of {}", self.reference);
        let expected = match self.reference.target() {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(_) => None,
        };
        self.manifest(&self.reference.target().to_string(), expected, MANIFEST_LIMIT, &what).await
    }

    /// Fetches a manifest that an index names.
    pub(crate) async fn manifest_at(&self, digest: Digest, size: u64) -> Result<Resolved, Error> {
        let what = format!("the manifest {digest} of {}", self.reference);
        self.manifest(&digest.to_string(), Some(digest), size.min(MANIFEST_LIMIT), &what).await
    }

    async fn manifest(
        &self,
        target: &str,
        expected: Option<Digest>,
        limit: u64,
        what: &str,
    ) -> Result<Resolved, Error> {
        let ask = Ask {
            method: Method::GET,
            path: format!("manifests/{target}"),
            accept: Some(manifest::ACCEPT),
            what,
            ..Ask::default()
        };
        let capable = |host: &Host| match expected {
            // By digest, whoever gives the content is right.
            Some(_) => host.pull,
            None => host.resolve,
        };
        let mut last = Error::NoHost("resolve tags");
        for endpoint in self.able(capable) {
            match self.manifest_from(endpoint, &ask, expected, limit).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    tracing::debug!(host = endpoint.host.name(), error = %Chain(&error), "a host did not give the manifest");
                    endpoint.is_given_up(&error);
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        expected: Option<Digest>,
        limit: u64,
    ) -> Result<Resolved, Error> {
        let response = self.ask(endpoint, ask).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let expected = expected.or_else(|| told_digest(response.headers()));
        let bytes = self.body(endpoint, response, limit, ask.what).await?;
        let digest = Digest::of(&bytes);
        match expected {
            Some(expected) if expected != digest => Err(Error::Digest {
                host: endpoint.host.name(),
                what: ask.what.to_owned(),
                expected,
                got: digest,
            }),
            _ => Ok(Resolved { digest, media_type, bytes }),
        }
    }

    /// A small body, whole.
    async fn body(
        &self,
        endpoint: &Endpoint,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut pace = Pace::new(self.progress_timeout);
        loop {
            let waiting = Instant::now();
            let Some(chunk) = self.patiently(endpoint, what, response.chunk()).await? else { break };
            if pace.is_too_slow(chunk.len() as u64, waiting.elapsed()) {
                return Err(self.stalled(endpoint, what));
            }
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(Error::TooLong { host: endpoint.host.name(), what: what.to_owned(), limit });
            }
        }
        Ok(bytes)
    }

    /// Waits for the network, but not for ever.
    pub(super) async fn patiently<T>(
        &self,
        endpoint: &Endpoint,
        what: &str,
        work: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, Error> {
        let answer = tokio::time::timeout(self.progress_timeout, work).await;
        self.answered(endpoint, what, answer.ok())
    }

    /// What came of waiting; `None`: nothing moved for too long.
    fn answered<T>(
        &self,
        endpoint: &Endpoint,
        what: &str,
        answer: Option<reqwest::Result<T>>,
    ) -> Result<T, Error> {
        match answer {
            Some(Ok(value)) => Ok(value),
            // The address may carry a signature in its query: it stays out of messages.
            Some(Err(source)) => Err(Error::Transport {
                host: endpoint.host.name(),
                what: what.to_owned(),
                source: source.without_url(),
            }),
            None => Err(self.stalled(endpoint, what)),
        }
    }

    /// Nothing, or too little, came.
    pub(super) fn stalled(&self, endpoint: &Endpoint, what: &str) -> Error {
        let after = self.progress_timeout;
        Error::Stalled { host: endpoint.host.name(), what: what.to_owned(), after }
    }

    /// Asks one host until it answers or the tries are used up. Only success comes back as such.
    pub(super) async fn ask(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, Error> {
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            tries += 1;
            let (error, wait) = match self.ask_authorized(endpoint, ask).await {
                Ok(response) if is_passing(response.status()) => {
                    let wait = retry_after(response.headers()).unwrap_or(pause);
                    (refusal(endpoint, ask, response).await, wait)
                }
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => return Err(refusal(endpoint, ask, response).await),
                Err(error @ Error::Transport { .. }) => (error, pause),
                Err(error) => {
                    endpoint.is_given_up(&error);
                    return Err(error);
                }
            };
            if endpoint.is_given_up(&error) || tries > RETRIES || wait > RETRY_AFTER_LIMIT {
                return Err(error);
            }
            tracing::debug!(host = endpoint.host.name(), error = %Chain(&error), ?wait, "asking again");
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
    }

    /// Asks once, and once more with what a challenge asked for.
    pub(super) async fn ask_authorized(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, Error> {
        let shown = endpoint.authorization.read().clone();
        let response = self.ask_plainly(endpoint, ask, shown.clone()).await?;
        // Where a redirect led to has no word in where the registry's credentials go: what it asks for is not answered.
        let own = response.url().origin() == endpoint.host.base.origin();
        if response.status() != StatusCode::UNAUTHORIZED || !own {
            return Ok(response);
        }
        let challenges = challenge::read(response.headers());
        let _one = endpoint.renewing.lock().await;
        let mut now = endpoint.authorization.read().clone();
        if now == shown {
            // Nobody else got one meanwhile.
            let answer = auth::answer(
                &endpoint.client,
                &challenges,
                &endpoint.secret,
                &self.scope,
                self.progress_timeout,
            )
            .await?;
            let Some(answer) = answer else { return Ok(response) };
            *endpoint.authorization.write() = Some(answer.clone());
            now = Some(answer);
        }
        self.ask_plainly(endpoint, ask, now).await
    }

    /// Asks once, following redirects. What is secret goes to the host itself only.
    async fn ask_plainly(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Error> {
        let base = &endpoint.host.base;
        let mut url = match &ask.url {
            Some(url) => url.clone(),
            None => self.address(endpoint, &ask.path),
        };
        for (name, value) in &ask.query {
            url.query_pairs_mut().append_pair(name, value);
        }
        for _ in 0..REDIRECTS {
            let own = url.origin() == base.origin();
            let mut headers = if own { endpoint.host.headers.clone() } else { HeaderMap::new() };
            if let (true, Some(value)) = (own, &authorization) {
                headers.insert(AUTHORIZATION, value.clone());
            }
            if let Some(accept) = ask.accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            if let Some(from) = ask.from.filter(|from| *from > 0)
                && let Ok(value) = HeaderValue::from_str(&format!("bytes={from}-"))
            {
                headers.insert(RANGE, value);
            }
            let mut request = endpoint.client.request(ask.method.clone(), url.clone());
            if let Some(content) = &ask.content {
                content.describe(&mut headers);
                request = request.body(content.body());
            }
            let sending = request.headers(headers).send();
            let response = match &ask.content {
                Some(content) => {
                    let answer = content.while_it_moves(self.progress_timeout, sending).await;
                    self.answered(endpoint, ask.what, answer)?
                }
                None => self.patiently(endpoint, ask.what, sending).await?,
            };
            let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(target) = response.headers().get(LOCATION).filter(|_| redirects) else {
                return Ok(response);
            };
            url = follow(endpoint, &url, target)?;
        }
        let problem = "too many redirects";
        Err(Error::Redirect { host: endpoint.host.name(), target: String::new(), problem })
    }

    /// Where a path of the repository is.
    fn address(&self, endpoint: &Endpoint, path: &str) -> Url {
        let mut url = endpoint.host.base.clone();
        let root = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{root}/{}/{path}", self.reference.path()));
        if let Some(namespace) = &endpoint.host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether the registry takes the session's credentials: its root says so (distribution-spec, "end-1").
    pub(crate) async fn check(&self) -> Result<(), Error> {
        // Mirrors come first; whom the credentials are for is the last.
        let endpoint = self.endpoints.last().ok_or(Error::NoHost("check credentials"))?;
        let mut root = endpoint.host.base.clone();
        root.set_path(&format!("{}/", root.path().trim_end_matches('/')));
        let ask = Ask { url: Some(root), what: "its API", ..Ask::default() };
        self.ask(endpoint, &ask).await.map(drop)
    }
}

fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}
