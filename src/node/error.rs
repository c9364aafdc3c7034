//! What goes wrong with a node's files: what was tried on what, and what to do next.

use std::io;
use std::path::PathBuf;

use super::root::HostPath;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's root can't be opened.
    #[error("opening {} as the host's root: {source}; --root takes the directory the host is mounted on", path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another run holds the lock.
    #[error("another installation works on {}; wait for it to end and try again", .0.display())]
    Busy(PathBuf),
    /// Something on a path of the host failed.
    #[error("{doing} {path} on the host: {source}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: HostPath,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of ours can't be read.
    #[error("reading {}: {source}; --from takes the directory with berthd, berth, berth-shim and berth-cni", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no program.
    #[error("{} is no program: {why}; --from takes the directory with berthd, berth, berth-shim and berth-cni", path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is no path of the host.
    #[error("{0:?} is no path on the host: {1}")]
    Path(String, &'static str),
    /// It is no version.
    #[error("{0:?} is no version: letters, digits and . _ + - , 64 at most")]
    Version(String),
    /// The version is neither here nor there.
    #[error(
        "version {version} is not installed on the host, and this program is {own}: give its programs by --from DIR"
    )]
    NoVersion {
        /// The version asked for.
        version: String,
        /// This program's.
        own: &'static str,
    },
    /// Something of somebody else is in the way.
    #[error("{path} is there already and not ours ({what}); move it away, then install again")]
    Conflict {
        /// Where.
        path: HostPath,
        /// What is there.
        what: &'static str,
    },
    /// Something of ours was changed by somebody.
    #[error("{0} was changed since it was installed; move it away, then install again")]
    Changed(HostPath),
    /// A file is larger than such a file can be.
    #[error("{path} on the host is larger than {limit} bytes: this is not the file it should be")]
    Large {
        /// The file.
        path: HostPath,
        /// The bound.
        limit: u64,
    },
    /// The manifest can't be trusted.
    #[error("{path} on the host: {why}; nothing was touched. Look at it, and remove it if it is not ours")]
    Manifest {
        /// The manifest.
        path: HostPath,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration for the drop-in is wrong.
    #[error("the configuration for {path}: {why}")]
    Configuration {
        /// Where it would go.
        path: HostPath,
        /// What is wrong.
        why: String,
    },
    /// There is no kubelet to switch.
    #[error(
        "no kubelet.service with an ExecStart on the host; where the kubelet is part of another program (k3s, RKE2, k0s), \
         install with --no-switch and give that program the endpoint unix:///run/berth/berth.sock"
    )]
    NoKubelet,
    /// There is no containerd to tell.
    #[error(
        "no /etc/containerd and no containerd program on the host; for another runtime install with --no-switch and give it \
         the runtime type io.containerd.berth.v1"
    )]
    NoContainerd,
    /// containerd's configuration can't take ours.
    #[error("{path} on the host: {why}")]
    Containerd {
        /// The file.
        path: HostPath,
        /// What is wrong, and what to do.
        why: String,
    },
    /// systemd refused.
    #[error("`systemctl {arguments}` on {}: {said}", root.display())]
    Systemctl {
        /// The host's root.
        root: PathBuf,
        /// What it was asked.
        arguments: String,
        /// Its answer.
        said: String,
    },
    /// A step failed; what was done before it is undone, except for these.
    #[error("{step}: {cause}; {}", undone(.left))]
    Step {
        /// The step.
        step: String,
        /// Why it failed.
        cause: Box<Error>,
        /// What could not be undone.
        left: Vec<Error>,
    },
    /// Some things could not be removed.
    #[error("{} could not be removed: {}. Mend this and uninstall again", .0.len(), list(.0))]
    Remains(Vec<Error>),
}

fn undone(left: &[Error]) -> String {
    match left {
        [] => "the host is as it was before".into(),
        left => {
            format!("undoing it failed as well: {}. Mend this, then run `berth node uninstall`", list(left))
        }
    }
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The system's number of what failed on a path of the host, if that is what went wrong.
    pub(crate) fn is_host(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::Host { source, .. } if source.kind() == kind)
    }
}
