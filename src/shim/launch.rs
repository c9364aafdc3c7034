//! Starting a shim.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use super::client::Shim;
use super::error::Error;
use super::program::Program;
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
    /// Another shim of containerd's shim v2 protocol, called by ours.
    Shim {
        /// The program.
        path: PathBuf,
        /// The daemon's socket, as the other shim is told it; that for its events has `.ttrpc` behind it.
        address: PathBuf,
        /// A configuration file of the shim's own.
        config: Option<PathBuf>,
    },
}

/// containerd's namespace that other shims are told.
const NAMESPACE: &str = "berth";
/// How the shim of a bundle was called, for those that can be called again.
const ARGUMENTS: &str = "shim-arguments.json";

/// Starts shims.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: Arc<Program>,
    filters: Option<PathBuf>,
}

impl Shim {
    /// Whether the shim of the container in `bundle` calls another one, a third party's, which holds the container.
    pub fn calls_another(bundle: &Path) -> bool {
        bundle.join(ARGUMENTS).exists()
    }
}

impl Launcher {
    /// A launcher of the shim program at `program`.
    pub fn new(program: PathBuf) -> Self {
        Self { program: Arc::new(Program::new(program)), filters: None }
    }

    /// Shims keep compiled seccomp filters in `directory`, which only root may write, and share them.
    #[must_use]
    pub fn with_filters(mut self, directory: PathBuf) -> Self {
        self.filters = Some(directory);
        self
    }

    /// The shim's program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Starts the shim of container `id` in `bundle` and connects to it. The socket listens before the process is
    /// there, so there is nothing to wait for: the first call is answered when the shim gets to it.
    ///
    /// # Errors
    /// [`Error::Bundle`] when socket or log can't be made, [`Error::Spawn`] when the program can't be started.
    pub fn spawn(&self, id: &str, bundle: &Path, backend: &Backend) -> Result<Shim, Error> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |option: &str, value: &Path| {
            arguments.extend([option.to_owned(), value.to_string_lossy().into_owned()]);
        };
        if let Some(directory) = &self.filters {
            add("--seccomp-cache", directory);
        }
        match backend {
            Backend::BuiltIn => {}
            Backend::Oci { path, root } => {
                add("--runtime", path);
                add("--runtime-root", root);
            }
            Backend::Shim { path, address, config } => {
                add("--shim", path);
                add("--address", address);
                add("--namespace", Path::new(NAMESPACE));
                if let Some(config) = config {
                    add("--shim-config", config);
                }
                let path = bundle.join(ARGUMENTS);
                let json = serde_json::to_vec(&arguments).map_err(std::io::Error::from);
                json.and_then(|json| std::fs::write(&path, json)).map_err(|source| Error::Bundle {
                    action: "writing",
                    path,
                    source,
                })?;
            }
        }
        self.run(id, bundle, &arguments)
    }

    /// Starts a shim anew that ended while another one, which it called, may still hold the container. `None` where there
    /// is no such thing.
    ///
    /// # Errors
    /// As [`Launcher::spawn`].
    pub fn spawn_again(&self, id: &str, bundle: &Path) -> Result<Option<Shim>, Error> {
        if !bundle.join("bootstrap.json").exists() {
            return Ok(None);
        }
        let Ok(json) = std::fs::read(bundle.join(ARGUMENTS)) else { return Ok(None) };
        let Ok(arguments) = serde_json::from_slice::<Vec<String>>(&json) else { return Ok(None) };
        let _ = std::fs::remove_file(bundle.join(socket::NAME));
        self.run(id, bundle, &arguments).map(Some)
    }

    fn run(&self, id: &str, bundle: &Path, arguments: &[String]) -> Result<Shim, Error> {
        let in_bundle = |action, name: &str| {
            let path = bundle.join(name);
            move |source| Error::Bundle { action, path, source }
        };
        let listener = socket::listen(bundle).map_err(in_bundle("listening on", socket::NAME))?;
        let log = File::options().create(true).append(true).open(bundle.join("shim.log"));
        let log = log.map_err(in_bundle("creating", "shim.log"))?;
        let (mut command, _file) =
            self.program.command(["serve", "--socket-fd", "0", "--id", id, "--bundle"]);
        // The listening socket travels as standard input: descriptors 0 to 2 are all that a process can be given
        // without running code between fork and exec, which would cost a copy of the daemon's page tables.
        command
            .arg(bundle)
            .args(arguments)
            .current_dir(bundle)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(log);
        // Dropping the handle leaves the shim running; the runtime reaps it if it ends while the daemon lives.
        command.spawn().map_err(|source| Error::Spawn { program: self.program.path().to_owned(), source })?;
        Shim::connect(id, bundle)
    }
}
