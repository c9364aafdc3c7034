//! What can go wrong with a pod.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::namespaces;
use crate::error::{Classify, Kind};
use crate::{container, store};

/// A call on a pod or one of its containers failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pod or container of that id.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// As the request names it.
        id: String,
    },
    /// More than one has an id that begins so.
    #[error("{id:?} is the beginning of more than one {what}'s id: write more of it")]
    Ambiguous {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// As the request names it.
        id: String,
    },
    /// The request lacks a field.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The metadata is that of one already there.
    #[error("{what} {name} is there already, as {id}: remove it first, or use another attempt number")]
    AlreadyExists {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Name and the rest of the metadata, for people.
        name: String,
        /// Who holds it.
        id: String,
    },
    /// The metadata is that of one being made from another configuration.
    #[error("{what} {name} is being made just now from a different configuration")]
    Conflict {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Name and the rest of the metadata, for people.
        name: String,
    },
    /// The runtime handler is not configured.
    #[error("no runtime handler {name:?} is configured; there are: {known}")]
    NoHandler {
        /// As the request names it.
        name: String,
        /// The configured ones.
        known: String,
    },
    /// The pod is not ready for the call.
    #[error("pod sandbox {id} is {state}: {call} needs a ready one")]
    PodState {
        /// The pod.
        id: String,
        /// What it is.
        state: &'static str,
        /// What was asked.
        call: &'static str,
    },
    /// The container is in a state that does not allow the call.
    #[error("container {id} is {state}: {call} needs a {needed} one")]
    ContainerState {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
        /// What was asked.
        call: &'static str,
        /// What it would have to be.
        needed: &'static str,
    },
    /// Containers of it hang in their making.
    #[error(
        "pod sandbox {id} can't be removed yet: {names} of it is still being made, and hangs in the kernel: look at the \
         paths that it mounts (a network file system whose server is gone?)"
    )]
    StillMade {
        /// The pod.
        id: String,
        /// Names of the containers.
        names: String,
    },
    /// A namespace could not be made or let go.
    #[error(transparent)]
    Namespace(#[from] namespaces::Error),
    /// A file of the pod could not be made.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process of the shared PID namespace could not be started.
    #[error("starting PID 1 of the pod's shared PID namespace: {reason}")]
    Init {
        /// What it or the system said.
        reason: String,
    },
    /// The network could not be set up or taken down.
    #[error("network of pod sandbox {id}")]
    Network {
        /// The pod.
        id: String,
        /// The network's own words.
        source: berth_cni::Error,
    },
    /// The node's pod CIDRs can't be the default network's subnets.
    #[error("the default network can't have the node's pod CIDRs")]
    PodCidrs(#[source] berth_cni::Error),
    /// There is no network for pods now.
    #[error(transparent)]
    Plugins(crate::cni::Error),
    /// Plugins could not attach or detach the pod.
    #[error("network of pod sandbox {id}")]
    Cni {
        /// The pod.
        id: String,
        /// What they said.
        source: crate::cni::Error,
    },
    /// An annotation about networks makes no sense.
    #[error("annotation {annotation}: {reason}")]
    Networks {
        /// Which.
        annotation: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A pod without a network of its own.
    #[error("pod sandbox {0} is on the host's network: it joins no other")]
    HostNetwork(String),
    /// The pod is not on that network.
    #[error("pod sandbox {id} is not connected to network {network:?}")]
    NotConnected {
        /// The pod.
        id: String,
        /// The network.
        network: String,
    },
    /// A published port is impossible.
    #[error("port mapping {mapping}: {reason}")]
    Port {
        /// The mapping, for people.
        mapping: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A container's step failed.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] store::Error),
    /// No random bytes for an id.
    #[error("making an id: {0}")]
    Id(#[from] getrandom::Error),
    /// Several things could not be undone; it can be tried again.
    #[error("{call} of pod sandbox {id} could not do everything: {list}")]
    Incomplete {
        /// What was asked.
        call: &'static str,
        /// The pod.
        id: String,
        /// What failed, joined.
        list: String,
    },
    /// The answer of an earlier identical call that this one joined.
    #[error(transparent)]
    Joined(Arc<Error>),
    /// The daemon shuts down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::NotConnected { .. } => Kind::NotFound,
            Self::Missing(_)
            | Self::Ambiguous { .. }
            | Self::NoHandler { .. }
            | Self::Port { .. }
            | Self::Networks { .. } => Kind::InvalidArgument,
            Self::AlreadyExists { .. } | Self::Conflict { .. } => Kind::AlreadyExists,
            Self::HostNetwork(_) | Self::PodState { .. } | Self::ContainerState { .. } => {
                Kind::FailedPrecondition
            }
            Self::StillMade { .. } => Kind::DeadlineExceeded,
            Self::Namespace(error) => error.kind(),
            Self::File { .. } | Self::Init { .. } | Self::Id(_) | Self::Incomplete { .. } => Kind::Internal,
            Self::Network { source, .. } | Self::PodCidrs(source) => Classify::kind(source),
            Self::Cni { source, .. } | Self::Plugins(source) => source.kind(),
            Self::Container(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Joined(error) => error.kind(),
            Self::ShuttingDown => Kind::Unavailable,
        }
    }
}
