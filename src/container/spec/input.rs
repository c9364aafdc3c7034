//! What a specification is built from.

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::Host;
use crate::proto::runtime::v1::{ContainerConfig, PodSandboxConfig};

/// Everything a specification is built from. All of it is borrowed: building changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct SpecInput<'a> {
    /// Id of the pod sandbox.
    pub pod_id: &'a str,
    /// Configuration of the pod sandbox.
    pub pod: &'a PodSandboxConfig,
    /// Configuration of the container.
    pub container: &'a ContainerConfig,
    /// Configuration of the container's image.
    pub image: &'a ImageConfiguration,
    /// The name by which the image was asked for; others read it from an annotation.
    pub image_name: &'a str,
    /// The image's layer directories, top layer first.
    pub lower_dirs: &'a [PathBuf],
    /// Where the root file system is: absolute, or relative to the bundle.
    pub rootfs: &'a Path,
    /// The pod's namespaces.
    pub namespaces: NamespacePaths<'a>,
    /// The pod's files.
    pub files: PodFiles<'a>,
    /// Directories of the container's own for the volumes that its image declares. A mount that it asks for at the same
    /// place comes first.
    pub volumes: &'a [Volume],
    /// For each of the container's mounts the layer directories of the image to be mounted there, top layer first; empty
    /// where the mount is not of an image, and missing at the end.
    pub image_layers: &'a [Vec<PathBuf>],
    /// The container's `linux.cgroupsPath`; see [`crate::cgroup::Naming::container`].
    pub cgroups_path: &'a str,
    /// What the runtime handler was configured with.
    pub handler: &'a HandlerOptions,
    /// The facts of this machine.
    pub host: &'a Host,
}

/// A directory of the host that takes the place of a declared volume.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Volume {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// The directory.
    pub source: PathBuf,
}

/// The namespaces that the pod made, as paths that can be joined. `None`: the pod is in the host's namespace of that
/// kind, or (pid) has none of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamespacePaths<'a> {
    /// Users and groups.
    pub user: Option<&'a Path>,
    /// Network.
    pub network: Option<&'a Path>,
    /// System V and POSIX message queues, shared memory.
    pub ipc: Option<&'a Path>,
    /// Host name.
    pub uts: Option<&'a Path>,
    /// The PID namespace that the containers of the pod share.
    pub pid: Option<&'a Path>,
    /// The PID namespace of the container that `target_id` names, such as `/proc/<pid>/ns/pid`.
    pub target_pid: Option<&'a Path>,
}

/// The pod's files on the host, which its containers see at the usual places unless they mount something else there.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodFiles<'a> {
    /// Seen at `/etc/hosts`.
    pub hosts: Option<&'a Path>,
    /// Seen at `/etc/hostname`.
    pub hostname: Option<&'a Path>,
    /// Seen at `/etc/resolv.conf`.
    pub resolv_conf: Option<&'a Path>,
    /// A tmpfs, seen at `/dev/shm`. Not used when the pod uses the host's IPC.
    pub shm: Option<&'a Path>,
}

/// What a runtime handler (`[runtimes.NAME]`) can be configured with as to specifications.
#[derive(Clone, Debug, Default)]
pub struct HandlerOptions {
    /// Privileged containers don't get the host's devices.
    pub privileged_without_host_devices: bool,
    /// …but may use any device that they make or find.
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// The handler can mount recursively read-only (kernel 5.12, and a runtime that knows `rro`).
    pub recursive_read_only_mounts: bool,
    /// Pods can have user namespaces: the handler joins one that is there.
    pub user_namespaces: bool,
    /// Berth's own shim makes the mounts of images, which may then have one layer and an SELinux label; other shims leave that to
    /// their runtime.
    pub stages_images: bool,
    /// The cgroup mount is writable for containers that are not privileged (cgroup v2).
    pub cgroup_writable: bool,
    /// The seccomp profile for a container that names none: unconfined when unset, as in containerd.
    pub unset_seccomp_profile: SeccompDefault,
    /// Limit of processes in a container that sets none.
    pub pids_limit: Option<i64>,
    /// Resource limits of every container's process.
    pub rlimits: Vec<Rlimit>,
}

/// The seccomp profile of a container that names none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum SeccompDefault {
    /// No filter.
    #[default]
    Unconfined,
    /// Berth's own profile.
    RuntimeDefault,
    /// A profile file on the host.
    Localhost(PathBuf),
}

/// A resource limit, by its name in the OCI specification (`RLIMIT_NOFILE`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    pub name: String,
    /// The limit that applies.
    pub soft: u64,
    /// The bound of what the process may set.
    pub hard: u64,
}
