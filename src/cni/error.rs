//! What can go wrong, in one place.

use std::path::PathBuf;

use super::result::Failure;
use crate::error::{Classify, Kind};
use crate::store;

/// What can go wrong with plugins and their configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration.
    #[error("no CNI configuration in {0}: install a network add-on, or set network.mode = \"builtin\"")]
    NoConfiguration(PathBuf),
    /// No configuration that can be used.
    #[error("no usable CNI configuration in {directory}: {reasons}")]
    NoneUsable {
        /// Where.
        directory: PathBuf,
        /// What is wrong with each file.
        reasons: String,
    },
    /// The directory can't be read.
    #[error("reading CNI configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A plugin is nowhere.
    #[error("CNI plugin {plugin:?} of network {network:?} is in none of {}", paths(searched))]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// The network.
        network: String,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// A plugin failed.
    #[error("CNI plugin {plugin:?}, {command} of network {network:?}: {failure}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// ADD, DEL and so on.
        command: &'static str,
        /// The network.
        network: String,
        /// How.
        failure: Box<Failure>,
    },
    /// A parameter that can't be passed on.
    #[error("CNI parameter {name} {value:?}: {reason}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// A record can't be written.
    #[error(transparent)]
    Record(#[from] store::Error),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoConfiguration(_) | Self::NoneUsable { .. } | Self::NoPlugin { .. } => {
                Kind::FailedPrecondition
            }
            Self::Plugin { failure, .. } => failure.kind(),
            Self::Parameter { .. } => Kind::InvalidArgument,
            Self::Record(error) => error.kind(),
            Self::Read { .. } => Kind::Internal,
        }
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
