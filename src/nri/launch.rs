//! Plugins that we start ourselves: the executables `NN-name` of the plugin directory, in the order of their names.
//!
//! A plugin's connection is its standard input: descriptors 0 to 2 are what a process can be given without running code
//! between fork and exec. `NRI_PLUGIN_SOCKET` tells it so, as the interface wants it; `NRI_PLUGIN_IDX` and
//! `NRI_PLUGIN_NAME` tell it who it is (nri, pkg/api/plugin.go).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::process::Command;

use super::join::{self, Known};
use super::plugin::check_name;
use super::{JoinError, Shared};

/// A configuration is handed to its plugin in one message.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Launches all plugins, one after the other. One that fails is left out.
pub(super) async fn all(shared: &Arc<Shared>) {
    let found = match programs(&shared.options.plugin_path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            let path = &shared.options.plugin_path;
            tracing::error!(path = %path.display(), %error, "reading the directory of NRI plugins");
            return;
        }
    };
    for (index, base, path) in found {
        if let Err(error) = one(shared, &index, &base, &path).await {
            let error = crate::error::chain(&error);
            tracing::error!(path = %path.display(), error, "an NRI plugin could not be launched");
        }
    }
}

/// Executables of the directory whose names are a plugin's.
fn programs(directory: &Path) -> io::Result<Vec<(String, String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let executable =
            fs::metadata(&path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        if !executable {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name.split_once('-').filter(|(index, base)| check_name(index, base).is_ok()) {
            Some((index, base)) => found.push((index.to_owned(), base.to_owned(), path)),
            None => tracing::warn!(
                path = %path.display(),
                "not an NRI plugin: those are named with two digits and a name, such as 10-device-injector"
            ),
        }
    }
    found.sort();
    Ok(found)
}

async fn one(shared: &Arc<Shared>, index: &str, base: &str, path: &Path) -> Result<(), JoinError> {
    let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|_| JoinError::Full)?;
    let config = config(&shared.options.plugin_config_path, index, base)?;
    let start = |source| JoinError::Start { path: path.to_owned(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(start)?;
    ours.set_nonblocking(true).map_err(start)?;
    let ours = UnixStream::from_std(ours).map_err(start)?;
    let process = Command::new(path)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("NRI_PLUGIN_NAME", base)
        .env("NRI_PLUGIN_IDX", index)
        .env("NRI_PLUGIN_SOCKET", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let known = Known { name: Some((index.to_owned(), base.to_owned())), config, process: Some(process) };
    let (plugin, incoming) = join::join(shared, ours, known).await?;
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        join::serve(&shared, &plugin, incoming).await;
        drop(place);
    });
    Ok(())
}

/// The plugin's configuration: by index and name, else by name alone, else none.
fn config(directory: &Path, index: &str, base: &str) -> Result<String, JoinError> {
    for name in [format!("{index}-{base}.conf"), format!("{base}.conf")] {
        let path = directory.join(name);
        let read = fs::metadata(&path).and_then(|file| {
            if file.len() > LARGEST_CONFIG {
                return Err(io::Error::other(format!("larger than {LARGEST_CONFIG} bytes")));
            }
            fs::read_to_string(&path)
        });
        match read {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(JoinError::Config { path, source }),
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_executables_with_a_plugins_name_are_launched() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in
            [("20-b", 0o755), ("10-a", 0o700), ("30-text", 0o644), ("noindex", 0o755), ("1-x", 0o755)]
        {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(directory.path().join("40-directory")).unwrap();
        let names: Vec<_> = programs(directory.path()).unwrap().into_iter().map(|(i, b, _)| (i, b)).collect();
        assert_eq!(names, [("10".to_owned(), "a".to_owned()), ("20".to_owned(), "b".to_owned())]);
        assert!(programs(&directory.path().join("absent")).is_err());
    }

    #[test]
    fn the_nearer_configuration_wins() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(config(directory.path(), "10", "a").unwrap(), "");
        fs::write(directory.path().join("a.conf"), "general").unwrap();
        assert_eq!(config(directory.path(), "10", "a").unwrap(), "general");
        fs::write(directory.path().join("10-a.conf"), "own").unwrap();
        assert_eq!(config(directory.path(), "10", "a").unwrap(), "own");
        assert_eq!(config(directory.path(), "20", "a").unwrap(), "general");
        fs::create_dir(directory.path().join("30-a.conf")).unwrap();
        assert!(config(directory.path(), "30", "a").is_err());
    }
}
