//! Why a specification can't be built.

use std::io;
use std::path::PathBuf;

use crate::error::{Classify, Kind};

/// Why a container's specification can't be built. Every message names the field and the value that was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field's value can't be right whatever the machine.
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        /// The CRI field.
        field: &'static str,
        /// What the caller sent.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Neither the container nor the image says what to run.
    #[error("container has no command: set command or args, the image has neither entrypoint nor cmd")]
    NoCommand,
    /// A feature that is not built.
    #[error("{field} {value:?}: {feature} are not supported")]
    Unsupported {
        /// The CRI field.
        field: &'static str,
        /// What the caller sent.
        value: String,
        /// The feature, in plural.
        feature: &'static str,
    },
    /// A feature that this machine has not got.
    #[error("{feature} can't be had here: {reason}")]
    Kernel {
        /// The feature, in plural.
        feature: &'static str,
        /// What is missing, with the version of Linux that has it.
        reason: String,
    },
    /// The container asks for a namespace of the pod that the pod hasn't got.
    #[error("namespace_options.{namespace}: the pod has no {namespace} namespace to join")]
    NoNamespace {
        /// Which namespace.
        namespace: &'static str,
    },
    /// A path of the host, given by the caller, that can't be used.
    #[error("{field} {path}: {source}", path = path.display())]
    HostPath {
        /// The CRI field.
        field: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host's mount does not propagate as the container's needs.
    #[error(
        "mounts[].host_path {path}: propagation {propagation} needs a {needed} mount, {mount_point} is {found}: \
         run `mount --make-r{make} {mount_point}` on the host",
        path = path.display(), mount_point = mount_point.display()
    )]
    Propagation {
        /// The path on the host.
        path: PathBuf,
        /// The mount it lies on.
        mount_point: PathBuf,
        /// What the caller asked for.
        propagation: &'static str,
        /// What kind of mount that takes.
        needed: &'static str,
        /// What the mount is.
        found: &'static str,
        /// The option of `mount --make-r…`.
        make: &'static str,
    },
    /// A user name that the image doesn't know.
    #[error("{field} {user:?}: no such user in the image's /etc/passwd")]
    UnknownUser {
        /// Where the name came from.
        field: &'static str,
        /// The name.
        user: String,
    },
    /// A group name that the image doesn't know.
    #[error("{field} {group:?}: no such group in the image's /etc/group")]
    UnknownGroup {
        /// Where the name came from.
        field: &'static str,
        /// The name.
        group: String,
    },
    /// A file of the image that is needed and can't be read.
    #[error("reading {path} of the image: {source}")]
    ImageFile {
        /// Its path in the image.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A file of the image that is bigger than we read.
    #[error("{path} of the image is larger than {limit} bytes")]
    ImageFileTooLarge {
        /// Its path in the image.
        path: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// A seccomp profile file that can't be read or is none.
    #[error("seccomp profile {path}: {source}", path = path.display())]
    SeccompProfile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ProfileError,
    },
    /// A profile or label that the host's security module does not know or does not run.
    #[error("{field} {value:?}: {reason}")]
    SecurityModule {
        /// The CRI field.
        field: &'static str,
        /// What the caller sent.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An SELinux label that can't be had.
    #[error("linux.security_context.selinux_options: {0}")]
    Label(#[from] crate::selinux::Error),
}

/// Why a seccomp profile file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It can't be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is larger than we read.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// It is not what the OCI runtime specification describes.
    #[error("not a seccomp profile: {0}")]
    Parse(#[from] serde_json::Error),
    /// It uses what needs an agent that listens.
    #[error("SCMP_ACT_NOTIFY needs an agent, which is not supported")]
    Notify,
}

impl Error {
    pub(crate) fn invalid(field: &'static str, value: impl Into<String>, reason: &'static str) -> Self {
        Self::Invalid { field, value: value.into(), reason }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. }
            | Self::NoCommand
            | Self::UnknownUser { .. }
            | Self::UnknownGroup { .. }
            | Self::ImageFileTooLarge { .. }
            | Self::SeccompProfile { .. }
            | Self::Label(_) => Kind::InvalidArgument,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::Kernel { .. }
            | Self::NoNamespace { .. }
            | Self::Propagation { .. }
            | Self::SecurityModule { .. } => Kind::FailedPrecondition,
            Self::HostPath { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Kind::InvalidArgument,
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                _ => Kind::Internal,
            },
            Self::ImageFile { .. } => Kind::Internal,
        }
    }
}
