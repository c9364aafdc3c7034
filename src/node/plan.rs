//! What an installation puts where, as a list of steps: a value that is made without touching anything.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{Made, Manifest};
use super::places::{
    CONTAINERD_SHIM, CRICTL, DROP_IN, PLUGINS, PROGRAMS, SERVICE, UNIT_PATH, WANTS, version,
};
use super::root::{HostPath, HostRoot};
use super::{BIN, CURRENT, ENDPOINT, Error, VERSIONS, containerd, kubelet};

/// This program's version.
pub const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");
/// systemd's unit; its programs are elsewhere here.
const UNIT: &str = include_str!("../../charts/berth/files/berth.service");

/// What a node uses Berth for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Beside the runtime that is there: containerd runs pods of a RuntimeClass by Berth's shim.
    #[default]
    RuntimeClass,
    /// As the node's runtime: the kubelet talks to berthd.
    Node,
}

/// What to install.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The directory that the host's root is at.
    pub root: PathBuf,
    /// What for.
    pub mode: Mode,
    /// Which version; none: this program's.
    pub version: Option<String>,
    /// The directory of the programs; none: those on the host if the version is there, else beside this program.
    pub from: Option<PathBuf>,
    /// A configuration to put into `/etc/berth/conf.d`; none: an empty one.
    pub config: Option<PathBuf>,
    /// Leave the kubelet (or containerd) as it is.
    pub no_switch: bool,
}

/// All steps of an installation.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The version that will be in use.
    pub version: String,
    /// What for.
    pub mode: Mode,
    /// In order.
    pub steps: Vec<Step>,
    /// What the administrator has to know.
    pub notes: Vec<String>,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A directory is there.
    Directory(HostPath),
    /// A file has this content.
    File {
        /// Where.
        path: HostPath,
        /// What.
        content: Content,
        /// Permission bits.
        mode: u32,
        /// Against what is there.
        standing: Standing,
    },
    /// A link points there.
    Link {
        /// Where.
        path: HostPath,
        /// Where to.
        target: String,
        /// Against what is there.
        standing: Standing,
    },
    /// What is there already stays, and remains ours.
    Keep(HostPath),
    /// A service runs with the files that are there now.
    Service(&'static str),
}

/// What is in a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// This.
    Bytes(Vec<u8>),
    /// What is in this file of ours.
    Copy {
        /// The file.
        from: PathBuf,
        /// Of its content.
        sha256: String,
    },
}

/// What happens when something that is not ours is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The installation fails: it makes no sense without.
    Needed,
    /// It stays, and a note says so.
    Yields,
    /// It is put aside, and comes back when Berth is uninstalled.
    Amends,
}

impl Plan {
    /// Makes the plan for a host.
    ///
    /// # Errors
    /// When programs are missing, the configuration is wrong, or there is nobody to switch.
    pub fn make(options: &Options, root: &HostRoot, manifest: Option<&Manifest>) -> Result<Self, Error> {
        let wanted = options.version.as_deref().unwrap_or(OWN_VERSION);
        version(wanted)?;
        let plan =
            Self { version: wanted.to_owned(), mode: options.mode, steps: Vec::new(), notes: Vec::new() };
        let mut maker = Maker { plan, root };
        maker.programs(options, manifest)?;
        maker.links()?;
        match options.mode {
            Mode::Node => maker.node(options)?,
            Mode::RuntimeClass => maker.runtime_class(options)?,
        }
        Ok(maker.plan)
    }
}

/// A plan under construction.
struct Maker<'a> {
    plan: Plan,
    root: &'a HostRoot,
}

impl Maker<'_> {
    /// Adds a step, after the directories that it needs.
    fn add(&mut self, step: Step) -> Result<(), Error> {
        if let Step::File { path, .. } | Step::Link { path, .. } | Step::Keep(path) = &step {
            let mut above = vec![];
            let mut at = path.parent().to_owned();
            while at != "/" {
                let directory = HostPath::try_from(at)?;
                at = directory.parent().to_owned();
                above.push(directory);
            }
            for directory in above.into_iter().rev() {
                let known = |step: &Step| matches!(step, Step::Directory(path) if *path == directory);
                if !self.plan.steps.iter().any(known) {
                    self.plan.steps.push(Step::Directory(directory));
                }
            }
        }
        self.plan.steps.push(step);
        Ok(())
    }

    fn file(
        &mut self,
        path: &str,
        content: impl Into<Vec<u8>>,
        mode: u32,
        standing: Standing,
    ) -> Result<(), Error> {
        let content = Content::Bytes(content.into());
        self.add(Step::File { path: path.try_into()?, content, mode, standing })
    }

    fn link(&mut self, path: &str, target: &str, standing: Standing) -> Result<(), Error> {
        self.add(Step::Link { path: path.try_into()?, target: target.to_owned(), standing })
    }

    fn programs(&mut self, options: &Options, manifest: Option<&Manifest>) -> Result<(), Error> {
        let version = self.plan.version.clone();
        let directory = format!("{VERSIONS}/{version}/bin");
        let there = manifest.is_some_and(|manifest| manifest.versions().any(|known| known == version));
        let from = match &options.from {
            Some(from) => Some(from.clone()),
            // Going back, or the same again: what was installed is what there is.
            None if there => None,
            None if version == OWN_VERSION => Some(beside_us()?),
            None => return Err(Error::NoVersion { version, own: OWN_VERSION }),
        };
        for program in PROGRAMS {
            let path = HostPath::try_from(format!("{directory}/{program}"))?;
            match &from {
                Some(from) => {
                    let content = program_at(&from.join(program))?;
                    self.add(Step::File { path, content, mode: 0o755, standing: Standing::Needed })?;
                }
                None => self.add(Step::Keep(path))?,
            }
        }
        self.link(&format!("{directory}/{CONTAINERD_SHIM}"), "berth-shim", Standing::Needed)?;
        self.link(CURRENT, &format!("versions/{version}"), Standing::Needed)
    }

    fn links(&mut self) -> Result<(), Error> {
        for name in PROGRAMS.iter().chain([&CONTAINERD_SHIM]) {
            self.link(&format!("/usr/local/bin/{name}"), &format!("{BIN}/{name}"), Standing::Yields)?;
        }
        for name in PLUGINS {
            self.link(&format!("/opt/cni/bin/{name}"), &format!("{BIN}/berth-cni"), Standing::Yields)?;
        }
        Ok(())
    }

    /// The daemon, and the kubelet that it serves.
    fn node(&mut self, options: &Options) -> Result<(), Error> {
        let drop_in = configuration(options.config.as_deref())?;
        self.file(DROP_IN, drop_in, 0o644, Standing::Yields)?;
        let unit = UNIT.replace("/usr/local/bin/", &format!("{BIN}/"));
        self.file(UNIT_PATH, unit, 0o644, Standing::Needed)?;
        self.link(WANTS, UNIT_PATH, Standing::Yields)?;
        let crictl = format!(
            "# Written by `berth node install`.\nruntime-endpoint: {ENDPOINT}\nimage-endpoint: {ENDPOINT}\ntimeout: 10\n"
        );
        self.file(CRICTL, crictl, 0o644, Standing::Amends)?;
        self.add(Step::Service(SERVICE))?;
        if options.no_switch {
            self.plan.notes.push(format!(
                "the kubelet is left as it is: give it --container-runtime-endpoint={ENDPOINT}, or \
                 containerRuntimeEndpoint in its configuration"
            ));
            return Ok(());
        }
        let drop_in = kubelet::drop_in(self.root)?;
        self.file(kubelet::DROP_IN, drop_in, 0o644, Standing::Needed)?;
        self.add(Step::Service("kubelet.service"))
    }

    /// The runtime that is there, told of our shim.
    fn runtime_class(&mut self, options: &Options) -> Result<(), Error> {
        if options.no_switch {
            self.plan.notes.push(format!(
                "containerd is left as it is: give it a runtime with runtime_type = \"io.containerd.berth.v1\" and \
                 runtime_path = \"{BIN}/{CONTAINERD_SHIM}\""
            ));
            return Ok(());
        }
        match containerd::amend(self.root)? {
            containerd::Amended::File { path, content } => {
                self.file(path, content, 0o644, Standing::Amends)?;
                self.add(Step::Service("containerd.service"))
            }
            containerd::Amended::Theirs(note) => {
                self.plan.notes.push(note);
                Ok(())
            }
        }
    }
}

/// The drop-in's text. A file given is checked first, so that no daemon is started with it in vain.
fn configuration(file: Option<&Path>) -> Result<String, Error> {
    let head = "# Written by `berth node install`, and by it again at the next installation. Put keys of your own into a file\n\
                # that sorts after this one: later files win.\n";
    let Some(file) = file else { return Ok(format!("{head}version = 1\n")) };
    let path = HostPath::try_from(DROP_IN)?;
    let wrong = |why: String| Error::Configuration { path: path.clone(), why };
    let source = crate::config::Source { file: Some(file.to_owned()), ..Default::default() };
    source.load().map_err(|error| wrong(error.to_string()))?;
    let text = std::fs::read_to_string(file)
        .map_err(|error| wrong(format!("reading {}: {error}", file.display())))?;
    Ok(format!("{head}{text}"))
}

/// The directory of the program that runs.
fn beside_us() -> Result<PathBuf, Error> {
    let own = std::env::current_exe()
        .map_err(|source| Error::Source { path: PathBuf::from("/proc/self/exe"), source })?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// A program to copy: a file that is not empty and can be executed.
fn program_at(path: &Path) -> Result<Content, Error> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| Error::Source { path: path.to_owned(), source };
    let not = |why| Error::Program { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(not("it is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(not("it is empty"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(not("it can't be executed"));
    }
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(failed)?;
    Ok(Content::Copy { from: path.to_owned(), sha256: hex::encode(hash.finalize()) })
}

impl Content {
    /// Of the content.
    pub(crate) fn sha256(&self) -> String {
        match self {
            Self::Bytes(bytes) => hex::encode(Sha256::digest(bytes)),
            Self::Copy { sha256, .. } => sha256.clone(),
        }
    }
}

impl Step {
    /// The path it is about.
    pub fn path(&self) -> Option<&HostPath> {
        match self {
            Self::Directory(path) | Self::Keep(path) => Some(path),
            Self::File { path, .. } | Self::Link { path, .. } => Some(path),
            Self::Service(_) => None,
        }
    }

    /// What it puts there, as the manifest has it.
    pub(crate) fn made(&self) -> Option<Made> {
        match self {
            Self::Directory(_) => Some(Made::Directory {}),
            Self::File { content, .. } => Some(Made::File { sha256: content.sha256(), replaces: None }),
            Self::Link { target, .. } => Some(Made::Link { target: target.clone(), replaces: None }),
            Self::Keep(_) | Self::Service(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_unit_runs_what_is_installed() {
        let unit = UNIT.replace("/usr/local/bin/", &format!("{BIN}/"));
        assert!(unit.contains("ExecStart=/opt/berth/current/bin/berthd\n"), "{unit}");
    }
}
