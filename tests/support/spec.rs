//! Short ways to say CRI messages.

use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// The namespaces that the kubelet asks for when a pod says nothing.
pub(crate) fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A pod sandbox with a unique uid. The world fills in log directory and cgroup parent
/// ([`super::World::pod`] is the usual way).
pub(crate) fn pod(name: &str) -> PodSandboxConfig {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{number}-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs `command` in `image`; its log is `<name>.log`.
pub(crate) fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// `sh -c script`.
pub(crate) fn script(name: &str, image: &str, script: &str) -> ContainerConfig {
    container(name, image, &["sh", "-c", script])
}

/// What reaches into the nested options of a container.
pub(crate) trait ContainerOptions {
    fn security(&mut self) -> &mut LinuxContainerSecurityContext;
    fn resources(&mut self) -> &mut LinuxContainerResources;
    fn env(&mut self, key: &str, value: &str);
}

impl ContainerOptions for ContainerConfig {
    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn env(&mut self, key: &str, value: &str) {
        self.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
    }
}

/// What reaches into the nested options of a pod.
pub(crate) trait PodOptions {
    fn security(&mut self) -> &mut LinuxSandboxSecurityContext;
    fn publish(&mut self, protocol: Protocol, host_port: i32, container_port: i32);
}

impl PodOptions for PodSandboxConfig {
    fn security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn publish(&mut self, protocol: Protocol, host_port: i32, container_port: i32) {
        self.port_mappings.push(PortMapping {
            protocol: protocol.into(),
            container_port,
            host_port,
            host_ip: String::new(),
        });
    }
}
