//! What `-o json` and `inspect` print. Programs depend on these fields: they are added to, never renamed or removed.
//! Names are in camelCase, times RFC 3339 in UTC (absent: has not happened), sizes bytes, ids in full.

pub(crate) mod details;

use std::collections::BTreeMap;

use berth::proto::runtime::v1::{
    Container, ContainerState, ContainerStatus, Image, PodSandbox, PodSandboxState, PodSandboxStatus,
};
use serde::Serialize;

use crate::names;
use crate::output::human;

/// A container, as `ps` lists it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerView {
    /// Full id.
    pub id: String,
    /// The name in its metadata.
    pub name: String,
    /// How many containers of that name the pod had before.
    pub attempt: u32,
    /// Full id of its pod.
    pub pod_id: String,
    /// Name of its pod.
    pub pod_name: String,
    /// Kubernetes namespace of its pod.
    pub pod_namespace: String,
    /// The image as it was asked for.
    pub image: String,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    /// `created`, `running`, `exited` or `unknown`.
    pub state: &'static str,
    /// When it was made.
    pub created_at: Option<String>,
    /// When it started.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// What it ended with, once it did.
    pub exit_code: Option<i32>,
    /// Why it ended: `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`.
    pub reason: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl ContainerView {
    /// From the list's entry, the status where it could be had, and the pod.
    pub(crate) fn new(
        listed: &Container,
        status: Option<&ContainerStatus>,
        pod: Option<&PodSandbox>,
    ) -> Self {
        let state = status.map_or(listed.state(), ContainerStatus::state);
        let metadata = pod.and_then(|pod| pod.metadata.as_ref());
        let asked_for = listed.image.as_ref().map(|image| {
            let user = image.user_specified_image.as_str();
            if user.is_empty() { image.image.clone() } else { user.to_owned() }
        });
        Self {
            id: listed.id.clone(),
            name: names::container_name(listed).to_owned(),
            attempt: listed.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            pod_id: listed.pod_sandbox_id.clone(),
            pod_name: pod.map_or("", names::pod_name).to_owned(),
            pod_namespace: metadata.map(|metadata| metadata.namespace.clone()).unwrap_or_default(),
            image: asked_for.unwrap_or_default(),
            image_id: if listed.image_id.is_empty() {
                listed.image_ref.clone()
            } else {
                listed.image_id.clone()
            },
            state: container_state(state),
            created_at: human::timestamp(listed.created_at),
            started_at: status.and_then(|status| human::timestamp(status.started_at)),
            finished_at: status.and_then(|status| human::timestamp(status.finished_at)),
            exit_code: status
                .filter(|_| state == ContainerState::ContainerExited)
                .map(|status| status.exit_code),
            reason: status.map(|status| status.reason.clone()).unwrap_or_default(),
            labels: listed.labels.clone().into_iter().collect(),
            annotations: listed.annotations.clone().into_iter().collect(),
        }
    }
}

/// A pod, as `pods` lists it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodView {
    /// Full id.
    pub id: String,
    /// The name in its metadata.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes uid.
    pub uid: String,
    /// How many sandboxes of that pod there were before.
    pub attempt: u32,
    /// `ready` or `notReady`.
    pub state: &'static str,
    /// When it was made.
    pub created_at: Option<String>,
    /// Its addresses, the primary one first; none on the host's network.
    pub addresses: Vec<String>,
    /// RuntimeClass handler; empty: the default.
    pub runtime_handler: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl PodView {
    /// From the list's entry, and the status where it could be had.
    pub(crate) fn new(listed: &PodSandbox, status: Option<&PodSandboxStatus>) -> Self {
        let metadata = listed.metadata.clone().unwrap_or_default();
        Self {
            id: listed.id.clone(),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
            state: pod_state(listed.state()),
            created_at: human::timestamp(listed.created_at),
            addresses: status.map(addresses).unwrap_or_default(),
            runtime_handler: listed.runtime_handler.clone(),
            labels: listed.labels.clone().into_iter().collect(),
            annotations: listed.annotations.clone().into_iter().collect(),
        }
    }
}

/// An image, as `images` lists it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageView {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Its names with tags.
    pub repo_tags: Vec<String>,
    /// Its names with digests.
    pub repo_digests: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// Never removed to make room.
    pub pinned: bool,
}

impl From<&Image> for ImageView {
    fn from(image: &Image) -> Self {
        Self {
            id: image.id.clone(),
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            size: image.size,
            pinned: image.pinned,
        }
    }
}

/// A container's state as a word.
pub(crate) fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

/// A pod's state as a word.
pub(crate) fn pod_state(state: PodSandboxState) -> &'static str {
    match state {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "notReady",
    }
}

/// A pod's addresses, the primary one first.
pub(crate) fn addresses(status: &PodSandboxStatus) -> Vec<String> {
    let Some(network) = &status.network else { return Vec::new() };
    std::iter::once(&network.ip)
        .chain(network.additional_ips.iter().map(|additional| &additional.ip))
        .filter(|address| !address.is_empty())
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth::proto::runtime::v1::{ContainerMetadata, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus};

    use super::*;

    #[test]
    fn containers_have_an_exit_code_only_once_they_ended() {
        let metadata = ContainerMetadata { name: "web".into(), attempt: 2 };
        let listed =
            Container { id: "c".into(), metadata: Some(metadata), created_at: 1, ..Default::default() };
        let mut status = ContainerStatus { exit_code: 3, ..Default::default() };
        status.set_state(ContainerState::ContainerRunning);
        assert_eq!(ContainerView::new(&listed, Some(&status), None).exit_code, None);
        status.set_state(ContainerState::ContainerExited);
        let json = serde_json::to_value(ContainerView::new(&listed, Some(&status), None)).unwrap();
        assert_eq!(json["exitCode"], 3);
        assert_eq!(json["state"], "exited");
        assert_eq!(json["createdAt"], "1970-01-01T00:00:00.000000001Z");
        assert_eq!(json["startedAt"], serde_json::Value::Null);
        assert_eq!(json["attempt"], 2);
    }

    #[test]
    fn pods_have_addresses_primary_first() {
        let metadata = PodSandboxMetadata { name: "web".into(), ..Default::default() };
        let listed = PodSandbox { id: "p".into(), metadata: Some(metadata), ..Default::default() };
        let network = PodSandboxNetworkStatus {
            ip: "10.85.0.2".into(),
            additional_ips: vec![PodIp { ip: "fd85::2".into() }],
        };
        let status = PodSandboxStatus { network: Some(network), ..Default::default() };
        let json = serde_json::to_value(PodView::new(&listed, Some(&status))).unwrap();
        assert_eq!(json["addresses"], serde_json::json!(["10.85.0.2", "fd85::2"]));
        assert!(PodView::new(&listed, Some(&PodSandboxStatus::default())).addresses.is_empty());
    }
}
