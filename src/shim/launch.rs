//! Starting a shim.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::client::Shim;
use super::error::Error;
use super::socket;

/// Who creates the container for the shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// libcontainer, linked into the shim.
    BuiltIn,
    /// The OCI runtime program at `path` (runc, crun, youki).
    Oci {
        /// The program.
        path: PathBuf,
        /// Its `--root`: where it keeps its own state.
        root: PathBuf,
    },
}

/// Starts shims.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    filters: Option<PathBuf>,
}

impl Launcher {
    /// A launcher of the shim program at `program`.
    pub fn new(program: PathBuf) -> Self {
        Self { program, filters: None }
    }

    /// Shims keep compiled seccomp filters in `directory`, which only root may write, and share them.
    #[must_use]
    pub fn with_filters(mut self, directory: PathBuf) -> Self {
        self.filters = Some(directory);
        self
    }

    /// The shim's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts the shim of container `id` in `bundle` and connects to it. The socket listens before the process is
    /// there, so there is nothing to wait for: the first call is answered when the shim gets to it.
    ///
    /// # Errors
    /// [`Error::Bundle`] when socket or log can't be made, [`Error::Spawn`] when the program can't be started.
    pub fn spawn(&self, id: &str, bundle: &Path, backend: &Backend) -> Result<Shim, Error> {
        let in_bundle = |action, name: &str| {
            let path = bundle.join(name);
            move |source| Error::Bundle { action, path, source }
        };
        let listener = socket::listen(bundle).map_err(in_bundle("listening on", "shim.sock"))?;
        let log = File::create(bundle.join("shim.log")).map_err(in_bundle("creating", "shim.log"))?;
        let mut command = Command::new(&self.program);
        // The listening socket travels as standard input: descriptors 0 to 2 are all that a process can be given
        // without running code between fork and exec, which would cost a copy of the daemon's page tables.
        command
            .args(["serve", "--socket-fd", "0", "--id", id, "--bundle"])
            .arg(bundle)
            .current_dir(bundle)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(directory) = &self.filters {
            command.arg("--seccomp-cache").arg(directory);
        }
        if let Backend::Oci { path, root } = backend {
            command.arg("--runtime").arg(path).arg("--runtime-root").arg(root);
        }
        // Dropping the handle leaves the shim running; the runtime reaps it if it ends while the daemon lives.
        command.spawn().map_err(|source| Error::Spawn { program: self.program.clone(), source })?;
        Shim::connect(id, bundle)
    }
}
