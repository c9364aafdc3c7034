//! Where criu is, and whether it works. Both are asked when they are needed: a node without it is as good as any for all else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::process::Command;

use crate::error::{Classify, Kind};

/// There is no criu to be called.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration says so.
    #[error("checkpoints are turned off on this node: checkpoint.enable in Berth's configuration")]
    Off,
    /// Nothing can be done without it.
    #[error(
        "there is no criu {}: install the package criu (version 4.2 or newer on current kernels), or set checkpoint.criu", 
        .tried.as_ref().map_or_else(|| "in PATH, /usr/sbin or /usr/local/sbin".to_owned(), |path| format!("at {}", path.display()))
    )]
    NoCriu {
        /// The program that the configuration names.
        tried: Option<PathBuf>,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}

/// Where it may be although PATH does not say so: services have a short one.
const USUAL: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
/// How long it may take to look at the kernel.
const CHECK: Duration = Duration::from_secs(10);

/// Whether there are checkpoints, and who makes them. Clones share what was found out.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    /// Whether there are any.
    pub enable: bool,
    /// The criu program; looked for where `None`.
    pub criu: Option<PathBuf>,
    /// Of which file what was found.
    known: Arc<Mutex<Option<Known>>>,
}

/// What a file said when it was asked.
#[derive(Clone, Debug)]
struct Known {
    program: PathBuf,
    changed: Option<SystemTime>,
    state: CheckpointState,
}

/// What can be said of checkpoints on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckpointState {
    /// Whether they are turned on.
    pub enabled: bool,
    /// The criu program.
    pub criu: Option<PathBuf>,
    /// Its version.
    pub version: String,
    /// Whether it says that the kernel has what it needs.
    pub works: bool,
    /// Why not.
    pub problem: String,
}

impl CheckpointOptions {
    /// With `criu`, where it is named.
    pub fn new(enable: bool, criu: Option<PathBuf>) -> Self {
        Self { enable, criu, known: Arc::default() }
    }

    /// The criu program.
    ///
    /// # Errors
    /// [`Error::Off`], [`Error::NoCriu`].
    pub fn program(&self) -> Result<PathBuf, Error> {
        self.program_if_any()?.ok_or_else(|| Error::NoCriu { tried: self.criu.clone() })
    }

    /// The same; that there is none is no error.
    ///
    /// # Errors
    /// [`Error::Off`].
    pub(super) fn program_if_any(&self) -> Result<Option<PathBuf>, Error> {
        if !self.enable {
            return Err(Error::Off);
        }
        if let Some(path) = &self.criu {
            return Ok(Some(path.clone()).filter(|path| is_program(path)));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::env::split_paths(&path).chain(USUAL.into_iter().map(PathBuf::from));
        Ok(directories.map(|directory| directory.join("criu")).find(|path| is_program(path)))
    }

    /// Asks criu what it can do here, once for each file that it is.
    pub async fn state(&self) -> CheckpointState {
        let program = match self.program() {
            Ok(program) => program,
            Err(error) => {
                return CheckpointState {
                    enabled: self.enable,
                    problem: error.to_string(),
                    ..Default::default()
                };
            }
        };
        let changed = program.metadata().and_then(|found| found.modified()).ok();
        let known = self.known.lock().clone();
        if let Some(known) = known.filter(|known| (&known.program, known.changed) == (&program, changed)) {
            return known.state;
        }
        let state = ask(program.clone()).await;
        *self.known.lock() = Some(Known { program, changed, state: state.clone() });
        state
    }
}

async fn ask(program: PathBuf) -> CheckpointState {
    let mut state = CheckpointState { enabled: true, criu: Some(program.clone()), ..Default::default() };
    match run(&program, "--version").await {
        Ok(text) => {
            let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
            state.version = version.unwrap_or_default().trim().to_owned();
        }
        Err(problem) => {
            state.problem = problem;
            return state;
        }
    }
    match run(&program, "check").await {
        Ok(_) => state.works = true,
        Err(problem) => state.problem = problem,
    }
    state
}

/// What it prints, or what it says in its last line.
async fn run(program: &Path, argument: &str) -> Result<String, String> {
    let name = || format!("{} {argument}", program.display());
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).kill_on_drop(true).current_dir("/");
    let output = match tokio::time::timeout(CHECK, command.output()).await {
        Err(_) => return Err(format!("{} did not end within {}s", name(), CHECK.as_secs())),
        Ok(output) => output.map_err(|error| format!("{}: {error}", name()))?,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String =
        said.lines().rev().find(|line| !line.is_empty()).unwrap_or_default().chars().take(500).collect();
    Err(format!("{}: {}: {said}", name(), output.status))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute()
        && path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn script(path: &Path, text: &str) {
        // Renamed into place: a file that is open for writing can't be executed.
        let new = path.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    #[test]
    fn a_program_is_an_executable_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("criu");
        let options = CheckpointOptions::new(true, Some(path.clone()));
        assert!(matches!(options.program(), Err(Error::NoCriu { tried: Some(_) })), "not there");
        std::fs::write(&path, "").unwrap();
        assert!(options.program().is_err(), "not executable");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(options.program().unwrap(), path);
        let off = CheckpointOptions { enable: false, ..options };
        assert!(matches!(off.program(), Err(Error::Off)));
    }

    #[tokio::test]
    async fn what_criu_says_is_told_until_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("criu");
        let options = CheckpointOptions::new(true, Some(path.clone()));
        assert!(options.state().await.problem.contains("install the package criu"));
        script(&path, "[ $1 = check ] && echo 'no kernel' >&2 && exit 1; echo 'Version: 4.1'");
        let state = options.state().await;
        assert_eq!((state.version.as_str(), state.works), ("4.1", false));
        assert!(state.problem.ends_with("no kernel"), "{}", state.problem);
        script(&path, "echo 'Version: 4.2'");
        // The time of a file tells it apart from the one before.
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::open(&path).unwrap().set_modified(later).unwrap();
        let state = options.state().await;
        assert_eq!((state.version.as_str(), state.works, state.problem.as_str()), ("4.2", true, ""));
    }
}
