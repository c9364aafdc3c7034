//! A pod, a container, an image and a machine for the unit tests of this room.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::{HandlerOptions, Host, NamespacePaths, PodFiles, SpecInput, Volume, capabilities};
use crate::cgroup::Mode;
use crate::proto::runtime::v1 as cri;

/// Owns what a [`SpecInput`] borrows. The machine is hybrid v1 and lacks CAP_SYS_RESOURCE.
pub(crate) struct Fixture {
    pub(crate) pod: cri::PodSandboxConfig,
    pub(crate) container: cri::ContainerConfig,
    pub(crate) image: ImageConfiguration,
    pub(crate) handler: HandlerOptions,
    pub(crate) host: Host,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) image_layers: Vec<Vec<PathBuf>>,
    layer: Option<tempfile::TempDir>,
    lower_dirs: Vec<PathBuf>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let pod = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web-0".into(),
                uid: "uid1".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/web-0".into(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let container = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "web".into(), attempt: 0 }),
            command: vec!["/bin/web".into()],
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut fixture = Self {
            pod,
            container,
            image: ImageConfiguration::default(),
            handler: HandlerOptions::default(),
            host: Host {
                capabilities: capabilities::from_bits(0x1ff_ffff_ffff & !(1 << 24)),
                cgroup: Mode::Hybrid,
                hugetlb: true,
                swap: true,
                apparmor: false,
                apparmor_default: None,
                selinux: None,
                no_user_namespaces: None,
                oom_score_adj: 0,
                may_exceed: false,
                rlimits: HashMap::new(),
                dev: "/dev".into(),
            },
            volumes: Vec::new(),
            image_layers: Vec::new(),
            layer: None,
            lower_dirs: Vec::new(),
        };
        fixture.image_config(serde_json::json!({}));
        fixture
    }

    pub(crate) fn input(&self) -> SpecInput<'_> {
        SpecInput {
            pod_id: "pod1",
            pod: &self.pod,
            container: &self.container,
            image: &self.image,
            image_name: "registry.test/web:1",
            lower_dirs: &self.lower_dirs,
            rootfs: Path::new("rootfs"),
            namespaces: NamespacePaths {
                user: Some(Path::new("/ns/user")),
                network: Some(Path::new("/ns/net")),
                ipc: Some(Path::new("/ns/ipc")),
                uts: Some(Path::new("/ns/uts")),
                pid: Some(Path::new("/ns/pid")),
                target_pid: Some(Path::new("/proc/7/ns/pid")),
            },
            files: PodFiles {
                hosts: Some(Path::new("/pod/hosts")),
                hostname: Some(Path::new("/pod/hostname")),
                resolv_conf: Some(Path::new("/pod/resolv.conf")),
                shm: Some(Path::new("/pod/shm")),
            },
            volumes: &self.volumes,
            image_layers: &self.image_layers,
            cgroups_path: "/berth/pod1/c1",
            handler: &self.handler,
            host: &self.host,
        }
    }

    pub(crate) fn context(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    pub(crate) fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.container.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    pub(crate) fn pod_context(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.pod.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    /// Replaces the image's `config` object.
    pub(crate) fn image_config(&mut self, config: serde_json::Value) {
        self.image = serde_json::from_value(serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap();
    }

    /// Puts a file into the image's one layer.
    pub(crate) fn image_file(&mut self, path: &str, content: &[u8]) {
        let path = self.place(path);
        std::fs::write(path, content).unwrap();
    }

    /// Puts a symbolic link into the image's one layer.
    pub(crate) fn image_link(&mut self, path: &str, target: &str) {
        let path = self.place(path);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    fn place(&mut self, path: &str) -> PathBuf {
        let layer = self.layer.get_or_insert_with(|| {
            tempfile::Builder::new().prefix("berth-spec-image").tempdir_in("/run").unwrap()
        });
        self.lower_dirs = vec![layer.path().to_path_buf()];
        let path = layer.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}
