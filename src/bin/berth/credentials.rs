//! Credentials for registries, where Docker keeps them: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
//!
//! A registry's own helper (`credHelpers`) comes before the one for all (`credsStore`), and that before what the file itself
//! holds (`auths`). Helpers are programs of the person who types: they run here, never in the daemon. What else is in the
//! file stays as it is.

mod file;
mod helper;

use anyhow::{Context, Result, anyhow, bail};
use berth::image::Reference;
use berth::proto::runtime::v1::AuthConfig;
use tonic::Code;

use self::file::File;
use self::helper::Helper;
use crate::failure::Refusal;

/// The registry that short names belong to.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
/// How Docker's configuration names it.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// The user name that says that the password is a token to be exchanged (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// A registry as references name it: `https://index.docker.io/v1/` is `docker.io`.
pub(crate) fn registry(text: &str) -> Result<String> {
    let host = host_of(text);
    if host.is_empty() || host.contains(char::is_whitespace) || host.starts_with('-') {
        bail!("`{text}` is no registry: write its host, as in registry.example or registry.example:5000");
    }
    Ok(host)
}

/// Where credentials for a registry went or came from, for people.
#[derive(Debug)]
pub(crate) enum Place {
    /// Docker's configuration file, readable by its owner only, not encrypted.
    File(std::path::PathBuf),
    /// A helper's name.
    Helper(String),
}

/// What is kept for the registry of an image. `None` where that is nothing.
pub(crate) async fn of_image(image: &str) -> Result<Option<AuthConfig>> {
    // What is no reference is refused by the daemon, which says why.
    let Ok(reference) = image.parse::<Reference>() else { return Ok(None) };
    of_registry(reference.host()).await
}

async fn of_registry(host: &str) -> Result<Option<AuthConfig>> {
    let Some(file) = File::read()? else { return Ok(None) };
    let context = || format!("looking for credentials of {host}");
    let key = key(host);
    if let Some(helper) = file.helper(&key, host)
        && let Some(found) = Helper::new(&helper)?.get(&key).await.with_context(context)?
    {
        return Ok(Some(for_host(found.username, found.secret, host)));
    }
    file.auth(host).with_context(context)
}

fn for_host(username: String, secret: String, host: &str) -> AuthConfig {
    let server_address = host.to_owned();
    if username == TOKEN_USER {
        return AuthConfig { identity_token: secret, server_address, ..AuthConfig::default() };
    }
    AuthConfig { username, password: secret, server_address, ..AuthConfig::default() }
}

/// Keeps a user's password.
pub(crate) async fn keep(host: &str, username: &str, password: &str) -> Result<Place> {
    let mut file = File::read_or_new()?;
    let key = key(host);
    if let Some(name) = file.helper(&key, host) {
        Helper::new(&name)?.store(&key, username, password).await?;
        return Ok(Place::Helper(name));
    }
    file.set_auth(&key, host, username, password);
    file.write().map(Place::File)
}

/// Forgets what is kept for a registry. `false` when that is nothing.
pub(crate) async fn forget(host: &str) -> Result<bool> {
    let Some(mut file) = File::read()? else { return Ok(false) };
    let key = key(host);
    let mut found = false;
    if let Some(name) = file.helper(&key, host) {
        found = Helper::new(&name)?.erase(&key).await?;
    }
    if file.remove_auth(host) {
        file.write()?;
        found = true;
    }
    Ok(found)
}

/// A refusal for lack of (other) credentials says where they come from.
pub(crate) fn advise(refusal: Refusal, image: &str) -> anyhow::Error {
    let host = image.parse::<Reference>().map(|reference| reference.host().to_owned());
    match (refusal.code, host) {
        (Code::Unauthenticated | Code::PermissionDenied, Ok(host)) => {
            let hint = if host == DEFAULT_REGISTRY { String::new() } else { format!(" {host}") };
            anyhow!(refusal).context(format!("credentials are needed: `berth login{hint}`"))
        }
        _ => refusal.into(),
    }
}

/// The key that new entries get, and that helpers are asked for.
fn key(host: &str) -> String {
    if host == DEFAULT_REGISTRY { DOCKER_KEY.to_owned() } else { host.to_owned() }
}

/// The host of a key: with or without scheme and path.
fn host_of(key: &str) -> String {
    let bare = key.trim().trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn registries_by_any_of_their_names() {
        for (text, host) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://registry.example:5000/v2/", "registry.example:5000"),
            ("registry.example/team/app", "registry.example"),
        ] {
            assert_eq!(registry(text).unwrap(), host);
        }
        for wrong in ["", "https://", "a b", "--password"] {
            assert!(registry(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_of_helpers_are_no_passwords() {
        let auth = for_host("<token>".into(), "t".into(), "a.test");
        assert_eq!((auth.identity_token.as_str(), auth.username.as_str()), ("t", ""));
        assert_eq!(auth.server_address, "a.test", "no other host is shown it");
    }
}
