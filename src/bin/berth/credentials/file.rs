//! Docker's configuration file. Read as JSON without a model of the whole, so that what Berth does not know stays.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth::proto::runtime::v1::AuthConfig;
use serde_json::{Map, Value, json};

use super::host_of;

/// Largest file that is read.
const LARGEST: u64 = 4 << 20;

/// The file's content.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    content: Map<String, Value>,
}

impl File {
    /// `None` when there is none.
    pub(super) fn read() -> Result<Option<Self>> {
        match path() {
            Some(path) => Self::read_at(&path),
            None => Ok(None),
        }
    }

    /// An empty one when there is none.
    pub(super) fn read_or_new() -> Result<Self> {
        let Some(path) = path() else {
            bail!("where are credentials to be kept? neither DOCKER_CONFIG nor HOME is set");
        };
        Ok(Self::read_at(&path)?.unwrap_or(Self { path, content: Map::new() }))
    }

    fn read_at(path: &Path) -> Result<Option<Self>> {
        let context = || format!("reading {}", path.display());
        let size = match std::fs::metadata(path) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            metadata => metadata.with_context(context)?.len(),
        };
        if size > LARGEST {
            bail!("{} is larger than {LARGEST} bytes", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(context)?;
        let content = if text.trim().is_empty() {
            Map::new()
        } else {
            serde_json::from_str(&text).with_context(context)?
        };
        Ok(Some(Self { path: path.to_owned(), content }))
    }

    /// The helper that keeps the registry's credentials.
    pub(super) fn helper(&self, key: &str, host: &str) -> Option<String> {
        let own = self.content.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
            let exact = helpers.get(key).or_else(|| helpers.get(host));
            exact.or_else(|| helpers.iter().find(|(one, _)| host_of(one) == host).map(|(_, helper)| helper))
        });
        let name = own.or_else(|| self.content.get("credsStore"))?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// What the file itself holds for a registry.
    pub(super) fn auth(&self, host: &str) -> Result<Option<AuthConfig>> {
        let Some(auths) = self.content.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let entry = auths
            .get(host)
            .or_else(|| auths.iter().find(|(key, _)| host_of(key) == host).map(|(_, entry)| entry));
        let Some(entry) = entry else { return Ok(None) };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let auth = AuthConfig {
            username: text("username"),
            password: text("password"),
            auth: text("auth"),
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            server_address: host.to_owned(),
        };
        let empty = [&auth.username, &auth.auth, &auth.identity_token, &auth.registry_token];
        Ok((!empty.iter().all(|text| text.is_empty())).then_some(auth))
    }

    /// Keeps a user's password, in place of what the file holds for the registry under any of its names.
    pub(super) fn set_auth(&mut self, key: &str, host: &str, username: &str, password: &str) {
        self.remove_auth(host);
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        if let Some(auths) = auths.as_object_mut() {
            let auth = STANDARD.encode(format!("{username}:{password}"));
            auths.insert(key.to_owned(), json!({ "auth": auth }));
        }
    }

    /// Forgets what the file holds for a registry.
    pub(super) fn remove_auth(&mut self, host: &str) -> bool {
        let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = auths.len();
        auths.retain(|key, _| host_of(key) != host);
        auths.len() < before
    }

    /// Writes the file so that others see the old or the new one, and only their owner its secrets.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let context = || format!("writing {}", self.path.display());
        // A link (as of dotfiles kept elsewhere) stays one.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(context)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        let mut file = tempfile::Builder::new()
            .prefix(".config.json.")
            .permissions(mode)
            .tempfile_in(directory)
            .with_context(context)?;
        let mut text = serde_json::to_string_pretty(&self.content).with_context(context)?;
        text.push('\n');
        file.write_all(text.as_bytes()).with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        file.persist(&path).map_err(|error| error.error).with_context(context)?;
        Ok(self.path.clone())
    }
}

fn path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
    Some(directory.join("config.json"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(directory: &Path, text: &str) -> File {
        let path = directory.join("config.json");
        std::fs::write(&path, text).unwrap();
        File::read_at(&path).unwrap().unwrap()
    }

    #[test]
    fn what_is_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let text =
            r#"{"psFormat":"x","auths":{"https://a.test/v1/":{"auth":"b2xk"},"b.test":{"auth":"Yjpi"}}}"#;
        let mut config = file(directory.path(), text);
        config.set_auth("a.test", "a.test", "me", "p:w");
        let path = config.write().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = File::read_at(&path).unwrap().unwrap();
        assert_eq!(again.content["psFormat"], "x");
        assert_eq!(again.content["auths"].as_object().unwrap().len(), 2, "no old name of it is left");
        let auth = again.auth("a.test").unwrap().unwrap();
        assert_eq!(STANDARD.decode(auth.auth).unwrap(), b"me:p:w");
        assert_eq!(auth.server_address, "a.test");
        assert!(again.remove_auth("a.test") && !again.remove_auth("a.test"));
        assert!(again.auth("a.test").unwrap().is_none() && again.auth("b.test").unwrap().is_some());
    }

    #[test]
    fn docker_hub_goes_by_its_old_address() {
        let directory = tempfile::tempdir().unwrap();
        let config = file(directory.path(), r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#);
        assert!(config.auth("docker.io").unwrap().is_some());
        assert!(config.auth("io").unwrap().is_none());
    }

    #[test]
    fn a_registrys_own_helper_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let config = file(
            directory.path(),
            r#"{"credsStore":"all","credHelpers":{"https://a.test":"one","b.test":""}}"#,
        );
        assert_eq!(config.helper("a.test", "a.test").as_deref(), Some("one"));
        assert_eq!(config.helper("c.test", "c.test").as_deref(), Some("all"));
        assert_eq!(config.helper("b.test", "b.test"), None, "an empty name turns it off");
    }

    #[test]
    fn an_empty_entry_is_none_and_a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(file(directory.path(), r#"{"auths":{"a.test":{}}}"#).auth("a.test").unwrap().is_none());
        let path = directory.path().join("config.json");
        std::fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", File::read_at(&path).unwrap_err()).contains("config.json"));
        assert!(File::read_at(&directory.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real.json");
        std::fs::write(&real, "{}").unwrap();
        let link = directory.path().join("config.json");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut config = File::read_at(&link).unwrap().unwrap();
        config.set_auth("a.test", "a.test", "u", "p");
        config.write().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(File::read_at(&real).unwrap().unwrap().auth("a.test").unwrap().is_some());
    }
}
