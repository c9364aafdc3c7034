//! Which namespaces the container makes, joins, or shares with the host.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};

use super::{Error, SpecInput, userns};
use crate::cgroup::Mode;
use crate::proto::runtime::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};

/// The pod's namespace options: what the CRI means when it says nothing is the pod's own namespace of each kind.
pub(super) fn of_pod(pod: &PodSandboxConfig) -> Option<&NamespaceOption> {
    pod.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()
}

/// Whether the pod's containers are to share one PID namespace: what the pod's configuration asks for.
pub fn shares_pid(pod: &PodSandboxConfig) -> bool {
    of_pod(pod).is_some_and(|options| options.pid == NamespaceMode::Pod as i32)
}

/// Whether the pod is in the host's network namespace.
pub fn host_network(pod: &PodSandboxConfig) -> bool {
    of_pod(pod).is_some_and(|options| options.network == NamespaceMode::Node as i32)
}

/// Whether the pod is in the host's IPC namespace.
pub fn host_ipc(pod: &PodSandboxConfig) -> bool {
    of_pod(pod).is_some_and(|options| options.ipc == NamespaceMode::Node as i32)
}

/// Whether the pod is in the host's PID namespace.
pub fn host_pid(pod: &PodSandboxConfig) -> bool {
    of_pod(pod).is_some_and(|options| options.pid == NamespaceMode::Node as i32)
}

/// Refuses what no container of the pod could have, so that the pod is not made in vain.
pub fn check_pod(pod: &PodSandboxConfig) -> Result<(), Error> {
    userns::user_namespace(pod).map(|_| ())
}

/// The container's namespaces.
pub(super) fn build(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let of_container = context.and_then(|c| c.namespace_options.as_ref());
    let user = userns::of_container(input.pod, of_container)?.is_some();

    let mut namespaces = vec![namespace(LinuxNamespaceType::Mount, None)];
    let paths = &input.namespaces;
    match (paths.user, user) {
        (_, false) => {}
        (Some(path), true) => namespaces.push(namespace(LinuxNamespaceType::User, Some(path))),
        (None, true) => return Err(Error::NoNamespace { namespace: "user" }),
    }
    // Network, IPC and UTS belong to the pod: the container has no say.
    for (typ, path, host, name) in [
        (LinuxNamespaceType::Network, paths.network, host_network(input.pod), "network"),
        (LinuxNamespaceType::Ipc, paths.ipc, host_ipc(input.pod), "ipc"),
        // A pod in the host's network keeps the host's name.
        (LinuxNamespaceType::Uts, paths.uts, host_network(input.pod), "uts"),
    ] {
        match (path, host) {
            (_, true) => {}
            (Some(path), false) => namespaces.push(namespace(typ, Some(path))),
            (None, false) => return Err(Error::NoNamespace { namespace: name }),
        }
    }

    let options = of_container.or(of_pod(input.pod));
    let mode = options.map_or(NamespaceMode::Pod as i32, |o| o.pid);
    match NamespaceMode::try_from(mode) {
        Ok(NamespaceMode::Node) if user => {
            let reason = "can't be beside a user namespace of the pod";
            return Err(Error::invalid("namespace_options.pid", "NODE", reason));
        }
        Ok(NamespaceMode::Node) => {}
        Ok(NamespaceMode::Container) => namespaces.push(namespace(LinuxNamespaceType::Pid, None)),
        Ok(NamespaceMode::Pod) => match paths.pid {
            Some(path) => namespaces.push(namespace(LinuxNamespaceType::Pid, Some(path))),
            // The pod did not ask for a shared one (POD is what an absent option reads as): each container then has its
            // own, which is Kubernetes' default.
            None if of_pod(input.pod).is_none() => namespaces.push(namespace(LinuxNamespaceType::Pid, None)),
            None if host_pid(input.pod) => {}
            None => return Err(Error::NoNamespace { namespace: "pid" }),
        },
        Ok(NamespaceMode::Target) => match paths.target_pid {
            Some(path) => namespaces.push(namespace(LinuxNamespaceType::Pid, Some(path))),
            None => {
                let target = options.map(|o| o.target_id.clone()).unwrap_or_default();
                return Err(Error::invalid(
                    "namespace_options.target_id",
                    target,
                    "no such running container",
                ));
            }
        },
        Err(_) => return Err(Error::invalid("namespace_options.pid", mode.to_string(), "no such mode")),
    }

    // On v1 the hierarchy in the container is read-only and shows the container's part anyway. Root of a user namespace can
    // mount only that of a namespace that belongs to it.
    if input.host.cgroup == Mode::Unified && (user || !super::privileged(input)) {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(namespaces)
}

fn namespace(typ: LinuxNamespaceType, path: Option<&Path>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(typ).set_path(path.map(Path::to_path_buf));
    namespace
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::{IdMapping, UserNamespace};

    const POD: i32 = NamespaceMode::Pod as i32;
    const CONTAINER: i32 = NamespaceMode::Container as i32;
    const NODE: i32 = NamespaceMode::Node as i32;
    const TARGET: i32 = NamespaceMode::Target as i32;

    fn fixture(pod: Option<(i32, i32, i32)>, container_pid: Option<i32>) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.pod_context().namespace_options =
            pod.map(|(network, ipc, pid)| NamespaceOption { network, ipc, pid, ..Default::default() });
        fixture.context().namespace_options =
            container_pid.map(|pid| NamespaceOption { pid, target_id: "other".into(), ..Default::default() });
        fixture
    }

    fn shown(input: &SpecInput<'_>) -> Vec<String> {
        let list = build(input).unwrap();
        let path = |n: &LinuxNamespace| n.path().as_ref().map(|p| p.display().to_string());
        list.iter().map(|n| format!("{}={}", n.typ(), path(n).unwrap_or_default())).collect()
    }

    #[test]
    fn modes() {
        for (pod, container, v2, want) in [
            (None, None, false, "mnt= net=/ns/net ipc=/ns/ipc uts=/ns/uts pid=/ns/pid"),
            (
                Some((POD, POD, CONTAINER)),
                Some(CONTAINER),
                false,
                "mnt= net=/ns/net ipc=/ns/ipc uts=/ns/uts pid=",
            ),
            (
                Some((POD, POD, CONTAINER)),
                None,
                true,
                "mnt= net=/ns/net ipc=/ns/ipc uts=/ns/uts pid= cgroup=",
            ),
            (Some((NODE, NODE, NODE)), Some(NODE), false, "mnt="),
            (Some((NODE, POD, POD)), Some(POD), false, "mnt= ipc=/ns/ipc pid=/ns/pid"),
            (Some((POD, NODE, POD)), Some(TARGET), false, "mnt= net=/ns/net uts=/ns/uts pid=/proc/7/ns/pid"),
        ] {
            let mut fixture = fixture(pod, container);
            fixture.host.cgroup = if v2 { Mode::Unified } else { Mode::Hybrid };
            assert_eq!(shown(&fixture.input()).join(" "), want);
        }
    }

    #[test]
    fn privileged_sees_all_cgroups() {
        let mut fixture = fixture(None, Some(CONTAINER));
        fixture.host.cgroup = Mode::Unified;
        fixture.context().privileged = true;
        assert!(!shown(&fixture.input()).contains(&"cgroup=".to_owned()));
    }

    #[test]
    fn missing_namespaces() {
        let fixture = fixture(Some((POD, POD, CONTAINER)), Some(POD));
        let mut input = fixture.input();
        input.namespaces.pid = None;
        assert!(matches!(build(&input), Err(Error::NoNamespace { namespace: "pid" })));
        input.namespaces.network = None;
        assert!(matches!(build(&input), Err(Error::NoNamespace { namespace: "network" })));
        let fixture = self::fixture(None, Some(TARGET));
        let mut input = fixture.input();
        input.namespaces.target_pid = None;
        assert!(build(&input).unwrap_err().to_string().contains("\"other\""));
        assert!(build(&self::fixture(None, Some(9)).input()).is_err());
        // Nothing said for the pod, so it has no shared one: a namespace of its own.
        for container in [None, Some(POD)] {
            let fixture = self::fixture(None, container);
            let mut input = fixture.input();
            input.namespaces.pid = None;
            assert!(shown(&input).contains(&"pid=".to_owned()));
        }
    }

    #[test]
    fn user_namespaces_are_joined() {
        let map = IdMapping { container_id: 0, host_id: 65_536, length: 65_536 };
        for (pid, want) in [
            (CONTAINER, "mnt= user=/ns/user net=/ns/net ipc=/ns/ipc uts=/ns/uts pid= cgroup="),
            (POD, "mnt= user=/ns/user net=/ns/net ipc=/ns/ipc uts=/ns/uts pid=/ns/pid cgroup="),
        ] {
            let mut fixture = fixture(Some((POD, POD, pid)), None);
            let userns = UserNamespace { mode: POD, uids: vec![map], gids: vec![map] };
            fixture.pod_context().namespace_options.as_mut().unwrap().userns_options = Some(userns);
            fixture.host.cgroup = Mode::Unified;
            fixture.context().privileged = true;
            assert_eq!(shown(&fixture.input()).join(" "), want);
            check_pod(&fixture.pod).unwrap();
            let mut input = fixture.input();
            input.namespaces.user = None;
            assert!(matches!(build(&input), Err(Error::NoNamespace { namespace: "user" })));
            fixture.context().namespace_options = Some(NamespaceOption { pid: NODE, ..Default::default() });
            assert!(build(&fixture.input()).unwrap_err().to_string().contains("user namespace"));
        }
    }

    #[test]
    fn what_the_pod_asks_for() {
        let fixture = fixture(Some((NODE, POD, POD)), None);
        assert!(host_network(&fixture.pod) && !host_ipc(&fixture.pod) && shares_pid(&fixture.pod));
        assert!(!host_pid(&fixture.pod));
        assert!(!shares_pid(&PodSandboxConfig::default()));
    }
}
