//! Pods and containers as plugins see them.
//!
//! What a container is made of stands in its OCI specification: the one that is about to be written, or the one in its
//! bundle.

mod resources;
mod specification;

use std::path::Path;

use oci_spec::runtime::Spec;

pub(super) use self::resources::{from_cri, to_cri};
use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::PodSnapshot;
use crate::proto::nri::v1alpha1::{
    CdiDevice, Container, ContainerState as State, Image, LinuxNamespace, LinuxPodSandbox, PodSandbox,
    SecurityProfile,
};
use crate::proto::runtime::v1::ContainerConfig;

/// A pod.
pub(super) fn pod(pod: &PodSnapshot) -> PodSandbox {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let linux = pod.config.linux.as_ref();
    let namespaces = pod
        .namespaces
        .iter()
        .map(|(kind, path)| LinuxNamespace { r#type: (*kind).to_owned(), path: path.display().to_string() });
    PodSandbox {
        id: pod.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead: linux.and_then(|linux| linux.overhead.as_ref()).map(from_cri),
            pod_resources: linux.and_then(|linux| linux.resources.as_ref()).map(from_cri),
            cgroup_parent: linux.map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
            namespaces: namespaces.collect(),
            ..Default::default()
        }),
        pid: 0,
        ips: pod.addresses.iter().map(ToString::to_string).collect(),
    }
}

/// A container, with what stands in its specification.
pub(super) fn container(container: &ContainerSnapshot, spec: Option<&Spec>) -> Container {
    let config = &container.config;
    let mut out = spec.map(specification::container).unwrap_or_default();
    out.id.clone_from(&container.id);
    out.pod_sandbox_id.clone_from(&container.pod_id);
    out.name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    out.labels.clone_from(&config.labels);
    for (key, value) in &config.annotations {
        out.annotations.entry(key.clone()).or_insert_with(|| value.clone());
    }
    out.created_at = container.created_at;
    state(&container.state, &mut out);
    out.cdi_devices =
        config.cdi_devices.iter().map(|device| CdiDevice { name: device.name.clone() }).collect();
    out.image = Some(Image {
        name: image_name(config),
        digest: container.image_ref.rsplit_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_default(),
        config_digest: container.image_id.clone(),
    });
    let linux = out.linux.get_or_insert_default();
    if linux.cgroups_path.is_empty() {
        linux.cgroups_path.clone_from(&container.cgroups_path);
    }
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    linux.seccomp_profile = context.and_then(|context| context.seccomp.as_ref()).map(|profile| {
        // The numbers are the CRI's.
        SecurityProfile { profile_type: profile.profile_type, localhost_ref: profile.localhost_ref.clone() }
    });
    out
}

fn state(state: &ContainerState, out: &mut Container) {
    match state {
        ContainerState::Created => out.set_state(State::ContainerCreated),
        ContainerState::Running { pid, started_at } => {
            out.set_state(State::ContainerRunning);
            (out.pid, out.started_at) = (*pid, *started_at);
        }
        ContainerState::Exited { started_at, finished_at, exit_code, reason, message } => {
            out.set_state(State::ContainerStopped);
            (out.started_at, out.finished_at, out.exit_code) = (*started_at, *finished_at, *exit_code);
            out.status_reason.clone_from(reason);
            out.status_message.clone_from(message);
        }
        ContainerState::Unknown => out.set_state(State::ContainerUnknown),
    }
}

fn image_name(config: &ContainerConfig) -> String {
    config
        .image
        .as_ref()
        .map(
            |image| {
                if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }
            },
        )
        .cloned()
        .unwrap_or_default()
}

/// The specification in a bundle. Reads a file: where blocking is allowed.
pub(super) fn read_spec(bundle: &Path) -> Option<Spec> {
    let bytes = std::fs::read(bundle.join("config.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}
