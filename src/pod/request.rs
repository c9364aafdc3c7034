//! What a pod's task is asked, and how others reach it.

use std::sync::Arc;
use std::time::Duration;

use berth_cni::EndpointOptions;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::error::Error;
use super::snapshot::PodSnapshot;
use crate::proto::runtime::v1::{ContainerConfig, LinuxContainerResources};

/// Requests that wait in a task's inbox; more callers wait to hand theirs in.
pub(super) const INBOX: usize = 64;

/// Where an answer goes. Nobody listening any more is fine: the work is done all the same.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a pod's task is asked to do.
#[derive(Debug)]
pub(super) enum Request {
    StopPod {
        reply: Reply<()>,
    },
    RemovePod {
        reply: Reply<()>,
    },
    Create {
        config: Box<ContainerConfig>,
        reply: Reply<String>,
    },
    Start {
        id: String,
        reply: Reply<()>,
    },
    Stop {
        id: String,
        grace: Duration,
        reply: Reply<()>,
    },
    Remove {
        id: String,
        reply: Reply<()>,
    },
    /// Joins the pod to one more network.
    Connect {
        network: String,
        options: Box<EndpointOptions>,
        reply: Reply<()>,
    },
    /// Takes it off one.
    Disconnect {
        network: String,
        reply: Reply<()>,
    },
    /// Changes a container's limits.
    Update {
        id: String,
        resources: Box<LinuxContainerResources>,
        /// Whether those are told who are told of such things.
        tell: bool,
        reply: Reply<()>,
    },
    /// Records the pod's.
    UpdatePod {
        overhead: Option<Box<LinuxContainerResources>>,
        resources: Option<Box<LinuxContainerResources>>,
        reply: Reply<()>,
    },
}

impl Request {
    /// What is asked, and of which container if of one.
    pub(super) fn subject(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::StopPod { .. } => ("stop_pod_sandbox", None),
            Self::RemovePod { .. } => ("remove_pod_sandbox", None),
            Self::Create { .. } => ("create_container", None),
            Self::Start { id, .. } => ("start_container", Some(id)),
            Self::Stop { id, .. } => ("stop_container", Some(id)),
            Self::Remove { id, .. } => ("remove_container", Some(id)),
            Self::Connect { .. } => ("connect", None),
            Self::Disconnect { .. } => ("disconnect", None),
            Self::Update { id, .. } => ("update_container_resources", Some(id)),
            Self::UpdatePod { .. } => ("update_pod_sandbox_resources", None),
        }
    }
}

/// A request, and the call that it is part of.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) call: Span,
}

/// A pod's task, as others hold it.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) requests: mpsc::Sender<Asked>,
    pub(super) snapshot: watch::Receiver<Arc<PodSnapshot>>,
}

/// Hands a request to a pod's task and awaits the answer; `None` when the pod is gone before it is answered.
pub(super) async fn ask<T>(
    handle: &Handle,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Option<Result<T, Error>> {
    let (reply, answer) = oneshot::channel();
    let asked = Asked { request: request(reply), call: Span::current() };
    handle.requests.send(asked).await.ok()?;
    answer.await.ok()
}
