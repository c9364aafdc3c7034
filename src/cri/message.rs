//! Writes pods and containers as CRI messages.

use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::PodSnapshot;
use crate::proto::runtime::v1::{
    self as cri, Container, ContainerResources, ContainerStatus, ImageSpec, LinuxPodSandboxStatus, Namespace,
    PodIp, PodSandbox, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus, Signal,
};

// === Pods ===

/// The state of a pod.
pub(crate) fn pod_state(pod: &PodSnapshot) -> PodSandboxState {
    if pod.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// A pod in a list.
pub(crate) fn pod(pod: &PodSnapshot) -> PodSandbox {
    PodSandbox {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

/// The status of a pod.
pub(crate) fn pod_status(pod: &PodSnapshot) -> PodSandboxStatus {
    let mut addresses = pod.addresses.iter().map(ToString::to_string);
    let security = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod).into(),
        created_at: pod.created_at,
        // A pod on the host's network has no addresses of its own: the kubelet puts in the node's.
        network: Some(PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

// === Containers ===

/// The state of a container.
pub(crate) fn container_state(state: &ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

/// A container in a list.
pub(crate) fn container(container: &ContainerSnapshot) -> Container {
    let config = &container.config;
    Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod_id.clone(),
        metadata: config.metadata.clone(),
        image: config.image.clone(),
        image_ref: container.image_ref.clone(),
        state: container_state(&container.state).into(),
        created_at: container.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: container.image_id.clone(),
    }
}

/// The status of a container. `tags` are those its image has now.
pub(crate) fn container_status(container: &ContainerSnapshot, tags: &[String]) -> ContainerStatus {
    let config = &container.config;
    let mut status = ContainerStatus {
        id: container.id.clone(),
        metadata: config.metadata.clone(),
        state: container_state(&container.state).into(),
        created_at: container.created_at,
        image: Some(image_spec(config.image.as_ref(), tags)),
        image_ref: container.image_ref.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: container.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: config
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone())
            .map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: container.image_id.clone(),
        user: container.user.clone(),
        stop_signal: signal(container.stop_signal).into(),
        ..Default::default()
    };
    match &container.state {
        ContainerState::Created | ContainerState::Unknown => {}
        ContainerState::Running { started_at, .. } => status.started_at = *started_at,
        ContainerState::Exited { started_at, finished_at, exit_code, reason, message } => {
            status.started_at = *started_at;
            status.finished_at = *finished_at;
            status.exit_code = *exit_code;
            status.reason.clone_from(reason);
            status.message.clone_from(message);
        }
    }
    status
}

/// The kubelet creates containers by image id and shows what stands here to people: a name, if the image has one.
fn image_spec(requested: Option<&ImageSpec>, tags: &[String]) -> ImageSpec {
    let mut spec = requested.cloned().unwrap_or_default();
    if !tags.contains(&spec.image) {
        let wanted = tags.iter().find(|tag| **tag == spec.user_specified_image).or(tags.first());
        if let Some(tag) = wanted {
            spec.image.clone_from(tag);
        }
    }
    spec
}

/// The CRI's name of a signal (KEP-4960). Its numbers are the CRI's own; real-time signals count from 34, as glibc's do.
fn signal(number: i32) -> Signal {
    use Signal as S;
    match number {
        1 => S::Sighup,
        2 => S::Sigint,
        3 => S::Sigquit,
        4 => S::Sigill,
        5 => S::Sigtrap,
        6 => S::Sigabrt,
        7 => S::Sigbus,
        8 => S::Sigfpe,
        9 => S::Sigkill,
        10 => S::Sigusr1,
        11 => S::Sigsegv,
        12 => S::Sigusr2,
        13 => S::Sigpipe,
        14 => S::Sigalrm,
        15 => S::Sigterm,
        16 => S::Sigstkflt,
        17 => S::Sigchld,
        18 => S::Sigcont,
        19 => S::Sigstop,
        20 => S::Sigtstp,
        21 => S::Sigttin,
        22 => S::Sigttou,
        23 => S::Sigurg,
        24 => S::Sigxcpu,
        25 => S::Sigxfsz,
        26 => S::Sigvtalrm,
        27 => S::Sigprof,
        28 => S::Sigwinch,
        29 => S::Sigio,
        30 => S::Sigpwr,
        31 => S::Sigsys,
        // SIGRTMIN is 35 in the CRI's list, SIGRTMAX (64) is 65, and all between follow in order.
        34..=64 => S::try_from(number + 1).unwrap_or(S::RuntimeDefault),
        _ => S::RuntimeDefault,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cri::fixtures;

    #[test]
    fn first_address_is_the_pods() {
        let status = pod_status(&fixtures::pod("aabb", "web"));
        let network = status.network.unwrap();
        assert_eq!(network.ip, "10.85.0.2");
        assert_eq!(network.additional_ips, [PodIp { ip: "fd85:be:27::2".into() }]);
        assert_eq!(status.state, i32::from(PodSandboxState::SandboxReady));
        assert_eq!(status.runtime_handler, "runc");
        assert_eq!(status.labels["app"], "web");
        assert_eq!(status.annotations["note"], "kept");
        assert!(status.linux.unwrap().namespaces.unwrap().options.is_some());
    }

    #[test]
    fn exits_carry_times_code_and_reason() {
        let exited = ContainerState::Exited {
            started_at: 20,
            finished_at: 30,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: "killed".into(),
        };
        let status = container_status(&fixtures::container("cc", "aabb", exited), &[]);
        assert_eq!(status.state, i32::from(cri::ContainerState::ContainerExited));
        assert_eq!((status.created_at, status.started_at, status.finished_at), (18, 20, 30));
        assert_eq!(
            (status.exit_code, status.reason.as_str(), status.message.as_str()),
            (137, "OOMKilled", "killed")
        );
        assert_eq!(status.log_path, "/var/log/pods/x/nginx/0.log");
        assert_eq!(status.stop_signal, i32::from(Signal::Sigterm));
        assert_eq!(
            (status.image_id.as_str(), status.image_ref.as_str()),
            ("sha256:aa", "docker.io/library/nginx@sha256:bb")
        );
    }

    #[test]
    fn images_are_shown_by_name() {
        let tags = ["docker.io/library/nginx:1".to_owned(), "docker.io/library/nginx:latest".to_owned()];
        let spec = |image: &str, user: &str| ImageSpec {
            image: image.into(),
            user_specified_image: user.into(),
            ..Default::default()
        };
        assert_eq!(image_spec(Some(&spec("sha256:aa", "")), &tags).image, tags[0]);
        assert_eq!(image_spec(Some(&spec("sha256:aa", &tags[1])), &tags).image, tags[1]);
        assert_eq!(image_spec(Some(&spec(&tags[1], "")), &tags).image, tags[1]);
        assert_eq!(image_spec(Some(&spec("sha256:aa", "")), &[]).image, "sha256:aa");
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(signal(15).as_str_name(), "SIGNAL_SIGTERM");
        assert_eq!(signal(34).as_str_name(), "SIGNAL_SIGRTMIN");
        assert_eq!(signal(37).as_str_name(), "SIGNAL_SIGRTMINPLUS3");
        assert_eq!(signal(64).as_str_name(), "SIGNAL_SIGRTMAX");
        assert_eq!(signal(0).as_str_name(), "SIGNAL_RUNTIME_DEFAULT");
    }
}
