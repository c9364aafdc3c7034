//! Credentials as the CRI passes them.

use std::fmt;

use base64::Engine as _;
use http::HeaderValue;
use url::Url;

use super::Error;
use super::hosts::authority;

/// What a pull may show to registries (CRI `AuthConfig`). Empty fields are absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password, or an identity token when the user name is `<token>`.
    pub password: String,
    /// `user:password` in base64.
    pub auth: String,
    /// The registry these belong to; when empty, every host that is asked for the image.
    pub server_address: String,
    /// A refresh token that the token server exchanges.
    pub identity_token: String,
    /// A token to show as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets never reach a log.
        f.debug_struct("Credentials").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// Credentials in the form they are used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    None,
    Password(String, String),
    Refresh(String),
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Credentials {
    /// What of these is for `host`, which stands for the registry `name`.
    pub(crate) fn secret(&self, host: &str, name: &str) -> Result<Secret, Error> {
        if !self.is_for(host, name) {
            return Ok(Secret::None);
        }
        if !self.registry_token.is_empty() {
            return Ok(Secret::Bearer(self.registry_token.clone()));
        }
        if !self.identity_token.is_empty() {
            return Ok(Secret::Refresh(self.identity_token.clone()));
        }
        let (username, password) = match (self.username.as_str(), self.auth.as_str()) {
            ("", "") => return Ok(Secret::None),
            ("", auth) => decode(auth)?,
            (username, _) => (username.to_owned(), self.password.clone()),
        };
        Ok(if username == "<token>" {
            Secret::Refresh(password)
        } else {
            Secret::Password(username, password)
        })
    }

    fn is_for(&self, host: &str, name: &str) -> bool {
        let address = self.server_address.trim();
        if address.is_empty() {
            return true;
        }
        let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let Ok(url) = Url::parse(&full) else { return false };
        // Docker's own registry goes by many names.
        let canonical = |host: String| match host.as_str() {
            "index.docker.io" | "registry-1.docker.io" | "docker.io" => "docker.io".to_owned(),
            _ => host,
        };
        let wanted = canonical(authority(&url));
        wanted == canonical(host.to_owned()) || (wanted == name && host == name)
    }
}

fn decode(auth: &str) -> Result<(String, String), Error> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .map_err(|_| Error::Credentials("auth is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Credentials("auth is not text"))?;
    let (user, password) = text.split_once(':').ok_or(Error::Credentials("auth is not user:password"))?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// `Basic` with user and password.
pub(crate) fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    sensitive(format!("Basic {text}"))
}

/// `Bearer` with a token.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, Error> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::Credentials("a token has characters that none can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn credentials_go_where_they_belong() {
        let password = Secret::Password("u".into(), "p:q".into());
        let mut credentials = Credentials { auth: "dTpwOnE=".into(), ..Credentials::default() };
        assert_eq!(credentials.secret("any.test", "any.test").unwrap(), password);
        credentials.server_address = "https://index.docker.io/v1/".into();
        assert_eq!(credentials.secret("registry-1.docker.io", "docker.io").unwrap(), password);
        assert_eq!(credentials.secret("mirror.test", "docker.io").unwrap(), Secret::None);
        credentials.server_address = "a.test:5000".into();
        assert_eq!(credentials.secret("a.test:5000", "a.test:5000").unwrap(), password);
        assert_eq!(credentials.secret("a.test", "a.test").unwrap(), Secret::None);
        assert!(!format!("{credentials:?}").contains("dTpw"));
    }

    #[test]
    fn kinds_of_credentials() {
        let of = |credentials: Credentials| credentials.secret("a", "a");
        let base = Credentials::default;
        assert_eq!(of(base()).unwrap(), Secret::None);
        let token = Credentials { username: "<token>".into(), password: "r".into(), ..base() };
        assert_eq!(of(token).unwrap(), Secret::Refresh("r".into()));
        assert_eq!(
            of(Credentials { identity_token: "i".into(), ..base() }).unwrap(),
            Secret::Refresh("i".into())
        );
        assert_eq!(
            of(Credentials { registry_token: "t".into(), ..base() }).unwrap(),
            Secret::Bearer("t".into())
        );
        assert!(of(Credentials { auth: "!".into(), ..base() }).is_err());
        assert!(of(Credentials { auth: "dXNlcg==".into(), ..base() }).is_err());
    }
}
