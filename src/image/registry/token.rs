//! Asking token servers: anonymous or with a password by GET, with a refresh token by POST (distribution,
//! docs/spec/auth/token.md and oauth.md).
//!
//! One that is busy is asked again, one that sends us elsewhere is followed. What is secret goes to the server itself only.

use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, LOCATION};
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use url::Url;

use super::Error;
use super::credentials::{Secret, basic};
use super::hosts::authority;
use super::retrying::{PAUSE, REDIRECTS, RETRIES, RETRY_AFTER_LIMIT, is_passing, retry_after};

/// Largest answer of a token server.
const TOKEN_LIMIT: usize = 1 << 20;
/// How we present ourselves to token servers.
const CLIENT_ID: &str = "berth";

/// Which token is wanted, and what is shown for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) client: &'a Client,
    pub(super) realm: &'a str,
    pub(super) service: &'a str,
    pub(super) scope: &'a str,
    pub(super) secret: &'a Secret,
    /// Longest wait for one answer.
    pub(super) timeout: Duration,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// Why there is no token.
enum Failure {
    /// Asking again may help, after this time if the server says one.
    Passing(Error, Option<Duration>),
    Final(Error),
}

impl Question<'_> {
    /// Gets the token.
    pub(super) async fn fetch(&self) -> Result<String, Error> {
        let url = Url::parse(self.realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| problem(self.realm, "is not an http or https address", false))?;
        let (mut tries, mut pause) = (0, PAUSE);
        loop {
            tries += 1;
            let (error, wait) = match tokio::time::timeout(self.timeout, self.ask(&url)).await {
                Ok(Ok(token)) => return Ok(token),
                Ok(Err(Failure::Final(error))) => return Err(error),
                Ok(Err(Failure::Passing(error, wait))) => (error, wait.unwrap_or(pause)),
                Err(_) => {
                    let seconds = self.timeout.as_secs_f32();
                    return Err(problem(&authority(&url), format!("did not answer for {seconds} s"), false));
                }
            };
            if tries > RETRIES || wait > RETRY_AFTER_LIMIT {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, "asking for a token again");
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
    }

    /// Asks once, following redirects.
    async fn ask(&self, realm: &Url) -> Result<String, Failure> {
        let mut url = realm.clone();
        if !matches!(self.secret, Secret::Refresh(_)) {
            let mut query = url.query_pairs_mut();
            if !self.service.is_empty() {
                query.append_pair("service", self.service);
            }
            for one in self.scope.split(' ').filter(|one| !one.is_empty()) {
                query.append_pair("scope", one);
            }
        }
        for _ in 0..REDIRECTS {
            let host = authority(&url);
            let own = is_same(realm, &url);
            let request = self.request(&url, own).map_err(Failure::Final)?;
            let response = request.send().await.map_err(|error| unreached(&host, &error))?;
            let status = response.status();
            let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let target = response.headers().get(LOCATION).filter(|_| redirects);
            let Some(target) = target else { return read(&host, response).await };
            let joined = target.to_str().ok().and_then(|text| url.join(text).ok());
            url = joined
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .ok_or_else(|| Failure::Final(problem(&host, "points to no http or https address", false)))?;
        }
        Err(Failure::Final(problem(&authority(realm), "redirects too often", false)))
    }

    fn request(&self, url: &Url, own: bool) -> Result<RequestBuilder, Error> {
        Ok(match self.secret {
            Secret::Refresh(_) if !own => {
                let text = "sends to another server, which the refresh token is not shown to";
                return Err(problem(&authority(url), text, false));
            }
            Secret::Refresh(token) => self.client.post(url.clone()).form(&[
                ("grant_type", "refresh_token"),
                ("service", self.service),
                ("scope", self.scope),
                ("client_id", CLIENT_ID),
                ("refresh_token", token),
            ]),
            Secret::Password(username, password) if own => {
                self.client.get(url.clone()).header(AUTHORIZATION, basic(username, password)?)
            }
            _ => self.client.get(url.clone()),
        })
    }
}

/// Whether a redirect stays where it began: the same place, or the same host by TLS.
fn is_same(realm: &Url, url: &Url) -> bool {
    let upgraded = realm.scheme() == "http" && url.scheme() == "https" && url.host_str() == realm.host_str();
    url.origin() == realm.origin() || upgraded
}

/// The token in an answer.
async fn read(host: &str, mut response: Response) -> Result<String, Failure> {
    let status = response.status();
    if !status.is_success() {
        let refused =
            matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let error = problem(host, format!("answers {status}"), refused);
        return Err(match is_passing(status) {
            true => Failure::Passing(error, retry_after(response.headers())),
            false => Failure::Final(error),
        });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreached(host, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() > TOKEN_LIMIT {
            let text = format!("sent more than {TOKEN_LIMIT} bytes");
            return Err(Failure::Final(problem(host, text, false)));
        }
    }
    let token: Token = serde_json::from_slice(&body)
        .map_err(|error| Failure::Final(problem(host, format!("sent no token: {error}"), false)))?;
    match if token.token.is_empty() { token.access_token } else { token.token } {
        empty if empty.is_empty() => Err(Failure::Final(problem(host, "sent an empty token", false))),
        token => Ok(token),
    }
}

fn problem(host: &str, problem: impl Into<String>, refused: bool) -> Error {
    Error::Token { host: host.to_owned(), problem: problem.into(), refused }
}

/// An error with its causes, without the address: it may carry secrets in its query.
fn unreached(host: &str, error: &reqwest::Error) -> Failure {
    let mut text = "can't be reached".to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Failure::Passing(problem(host, text, false), None)
}
