//! What `run` asks the daemon for, in the CRI's words.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use berth::proto::runtime::v1::security_profile::ProfileType;
use berth::proto::runtime::v1::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, Image, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};

use super::settings::Settings;
use super::{Run, log_dir, marks};

/// The Kubernetes namespace of pods that are not of Kubernetes.
const NAMESPACE: &str = "default";
/// Paths that leak or change the host, hidden by every engine (OCI runtime-spec, config-linux.md, "Masked Paths").
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// The like, which may be read.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which pod it is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub name: String,
    pub uid: String,
    pub image: Image,
    pub log_directory: PathBuf,
}

impl Identity {
    /// A new one. A pod of a name used before is another pod, with a log of its own.
    pub(crate) fn new(name: String, logs: &Path, image: Image) -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("making a uid: {error}"))?;
        let uid = uuid(bytes);
        let log_directory = logs.join(format!("{name}-{}", uid.get(..8).unwrap_or_default()));
        Ok(Self { name, uid, image, log_directory })
    }
}

/// A UUID of version 4 (RFC 9562, 5.4).
fn uuid(random: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, i, rest @ ..] = random;
    let fields = [
        hex::encode([a, b, c, d]),
        hex::encode([e, f]),
        hex::encode([0x40 | (g & 0x0f), h]),
        hex::encode([0x80 | (i & 0x3f), rest[0]]),
        hex::encode(&rest[1..]),
    ];
    fields.join("-")
}

/// The pod.
pub(crate) fn pod(run: &Run, settings: &Settings, identity: &Identity) -> PodSandboxConfig {
    let mut annotations = settings.annotations.clone();
    annotations.insert(marks::LOG_DIRECTORY.to_owned(), path_text(&identity.log_directory));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: identity.name.clone(),
            uid: identity.uid.clone(),
            namespace: NAMESPACE.to_owned(),
            attempt: 0,
        }),
        hostname: run
            .hostname
            .clone()
            .unwrap_or_else(|| if settings.host_network { String::new() } else { identity.name.clone() }),
        log_directory: path_text(&identity.log_directory),
        port_mappings: settings.ports.clone(),
        dns_config: (!run.dns.is_empty()).then(|| DnsConfig {
            servers: run.dns.clone(),
            searches: run.dns_search.clone(),
            options: run.dns_option.clone(),
        }),
        labels: labels(settings, identity),
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: run.cgroup_parent.clone().unwrap_or_default(),
            sysctls: settings.isolated.sysctls.clone(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(settings)),
                privileged: run.privileged,
                seccomp: Some(seccomp(run, settings)),
                selinux_options: settings.isolated.selinux.clone(),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// The container.
pub(crate) fn container(run: &Run, settings: &Settings, identity: &Identity) -> ContainerConfig {
    let paths = |paths: &[&str]| {
        // A privileged container sees all.
        let all = run.privileged || settings.isolated.bare_system_paths;
        if all { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: identity.name.clone(), attempt: 0 }),
        // By id: the name may mean another image before the container is made.
        image: Some(ImageSpec {
            image: identity.image.id.clone(),
            user_specified_image: run.image.clone(),
            ..ImageSpec::default()
        }),
        command: run.entrypoint.iter().cloned().collect(),
        args: run.command.clone(),
        working_dir: run.workdir.clone().unwrap_or_default(),
        envs: settings.envs.clone(),
        mounts: settings.mounts.clone(),
        devices: settings.isolated.devices.clone(),
        cdi_devices: settings.isolated.cdi_devices.clone(),
        stop_signal: settings.stop_signal.unwrap_or_default().into(),
        labels: labels(settings, identity),
        log_path: log_dir::FILE.to_owned(),
        tty: run.tty,
        stdin: run.interactive,
        // As docker does: in the foreground our end of input is the container's.
        stdin_once: run.interactive && !run.detach,
        linux: Some(LinuxContainerConfig {
            resources: Some(settings.resources.clone()),
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: run.cap_add.iter().map(|name| capability(name)).collect(),
                    drop_capabilities: run.cap_drop.iter().map(|name| capability(name)).collect(),
                    add_ambient_capabilities: Vec::new(),
                }),
                privileged: run.privileged,
                namespace_options: Some(namespaces(settings)),
                run_as_user: settings.user.uid,
                run_as_group: settings.user.gid,
                run_as_username: settings.user.name.clone(),
                supplemental_groups: settings.isolated.groups.clone(),
                no_new_privs: settings.isolated.no_new_privileges,
                selinux_options: settings.isolated.selinux.clone(),
                readonly_rootfs: run.read_only,
                masked_paths: paths(&MASKED),
                readonly_paths: paths(&READ_ONLY),
                seccomp: Some(seccomp(run, settings)),
                apparmor: settings.isolated.apparmor.clone(),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// A network of the pod or the host's; process ids of its own, which takes no process beside the container's, or the host's.
fn namespaces(settings: &Settings) -> NamespaceOption {
    let network = if settings.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
    let mut options = NamespaceOption::default();
    options.set_network(network);
    let isolated = &settings.isolated;
    options.set_pid(if isolated.host_pid { NamespaceMode::Node } else { NamespaceMode::Container });
    options.set_ipc(if isolated.host_ipc { NamespaceMode::Node } else { NamespaceMode::Pod });
    options
}

fn seccomp(run: &Run, settings: &Settings) -> SecurityProfile {
    if let Some(profile) = &settings.isolated.seccomp {
        return profile.clone();
    }
    let mut profile = SecurityProfile::default();
    profile.set_profile_type(if run.privileged {
        ProfileType::Unconfined
    } else {
        ProfileType::RuntimeDefault
    });
    profile
}

/// The CRI writes capabilities without their prefix.
fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// The user's own, and those that crictl and other tools know pods by.
fn labels(settings: &Settings, identity: &Identity) -> HashMap<String, String> {
    let mut labels = settings.labels.clone();
    for (key, value) in [
        (marks::RUN, &identity.name),
        ("io.kubernetes.pod.name", &identity.name),
        ("io.kubernetes.pod.namespace", &NAMESPACE.to_owned()),
        ("io.kubernetes.pod.uid", &identity.uid),
        ("io.kubernetes.container.name", &identity.name),
    ] {
        labels.insert(key.to_owned(), value.clone());
    }
    labels
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run() -> Run {
        Run { image: "nginx".into(), command: vec!["-g".into(), "x".into()], ..Run::default() }
    }

    fn identity() -> Identity {
        let image = Image { id: "sha256:1".into(), ..Image::default() };
        Identity::new("web".into(), Path::new("/logs"), image).unwrap()
    }

    #[test]
    fn uids_are_uuids() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(identity().uid, identity().uid);
    }

    #[test]
    fn pod_and_container_have_one_name_and_log() {
        let (run, settings, identity) = (run(), Settings::default(), identity());
        let (pod, container) = (pod(&run, &settings, &identity), container(&run, &settings, &identity));
        assert_eq!(pod.metadata.unwrap().name, "web");
        assert_eq!(pod.hostname, "web");
        assert_eq!(container.metadata.unwrap().name, "web");
        assert!(pod.log_directory.starts_with("/logs/web-"));
        assert_eq!(pod.annotations[marks::LOG_DIRECTORY], pod.log_directory);
        assert_eq!(container.log_path, "0.log");
        assert_eq!(container.args, ["-g", "x"]);
        assert!(container.command.is_empty());
        let image = container.image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "nginx"));
    }

    #[test]
    fn confined_unless_privileged() {
        let context = |run: &Run| {
            container(run, &Settings::default(), &identity()).linux.unwrap().security_context.unwrap()
        };
        let confined = context(&run());
        assert_eq!(confined.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
        assert!(!confined.masked_paths.is_empty() && !confined.privileged);
        let privileged = context(&Run { privileged: true, ..run() });
        assert_eq!(privileged.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
        assert!(privileged.masked_paths.is_empty() && privileged.privileged);
    }

    #[test]
    fn namespaces_follow_the_network() {
        let options = |host_network| namespaces(&Settings { host_network, ..Settings::default() });
        assert_eq!(options(true).network(), NamespaceMode::Node);
        assert_eq!(options(false).network(), NamespaceMode::Pod);
        assert_eq!(options(false).pid(), NamespaceMode::Container);
    }

    #[test]
    fn capabilities_lose_their_prefix() {
        assert_eq!(capability("cap_net_admin"), "NET_ADMIN");
        assert_eq!(capability("ALL"), "ALL");
    }

    #[test]
    fn labels_of_kubernetes_can_not_be_overwritten() {
        let settings = Settings {
            labels: HashMap::from([("io.kubernetes.pod.name".into(), "x".into()), ("a".into(), "b".into())]),
            ..Settings::default()
        };
        let labels = labels(&settings, &identity());
        assert_eq!(labels["io.kubernetes.pod.name"], "web");
        assert_eq!(labels["a"], "b");
    }
}
