//! User namespaces (KEP-127): what a pod asks for, and how its ids are called outside.

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::namespaces::of_pod;
use super::{Error, HandlerOptions, Host, User};
use crate::proto::runtime::v1 as cri;
use crate::proto::runtime::v1::NamespaceMode;

const MODE: &str = "namespace_options.userns_options.mode";

/// The ids of users and groups inside, each as those outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<LinuxIdMapping>,
    /// Groups.
    pub gids: Vec<LinuxIdMapping>,
}

impl IdMaps {
    /// Users and groups in the form of mount options: `inside:outside:count`.
    pub fn texts(&self) -> (String, String) {
        let text = |map: &[LinuxIdMapping]| {
            let ranges: Vec<_> = map
                .iter()
                .map(|range| format!("{}:{}:{}", range.container_id(), range.host_id(), range.size()))
                .collect();
            ranges.join(",")
        };
        (text(&self.uids), text(&self.gids))
    }

    /// The user and group outside who are root inside.
    pub fn root(&self) -> Option<(u32, u32)> {
        let root = |map: &[LinuxIdMapping]| {
            map.iter().find(|range| range.container_id() == 0).map(LinuxIdMapping::host_id)
        };
        Some((root(&self.uids)?, root(&self.gids)?))
    }

    /// Whether there is a group of that number inside.
    pub(super) fn has_group(&self, gid: u32) -> bool {
        has(&self.gids, gid)
    }
}

fn has(map: &[LinuxIdMapping], id: u32) -> bool {
    map.iter().any(|range| id.checked_sub(range.container_id()).is_some_and(|offset| offset < range.size()))
}

/// The user namespace that a pod is to have; `None`: that of the node.
///
/// # Errors
/// [`Error::Invalid`] when the request contradicts itself, maps what can't be, or asks beside it for the node's PID or IPC
/// namespace, which root of another user namespace can't mount the file systems of.
pub fn user_namespace(pod: &cri::PodSandboxConfig) -> Result<Option<IdMaps>, Error> {
    let Some(options) = of_pod(pod) else { return Ok(None) };
    let Some(maps) = options.userns_options.as_ref().map_or(Ok(None), read)? else { return Ok(None) };
    for (field, mode) in [("namespace_options.pid", options.pid), ("namespace_options.ipc", options.ipc)] {
        if mode == NamespaceMode::Node as i32 {
            return Err(Error::invalid(field, "NODE", "can't be beside a user namespace of the pod"));
        }
    }
    Ok(Some(maps))
}

/// Refuses a user namespace that this machine, or the handler, can't give.
pub fn check_user_namespace(
    pod: &cri::PodSandboxConfig,
    host: &Host,
    handler: &HandlerOptions,
) -> Result<(), Error> {
    if user_namespace(pod)?.is_none() {
        return Ok(());
    }
    if let Some(reason) = &host.no_user_namespaces {
        return Err(Error::Kernel { feature: "user namespaces of pods", reason: reason.clone() });
    }
    if !handler.user_namespaces {
        let feature = "user namespaces of this runtime handler";
        return Err(Error::Unsupported { field: MODE, value: "POD".into(), feature });
    }
    Ok(())
}

/// That of a container: its pod's, which it may repeat but not change.
pub(super) fn of_container(
    pod: &cri::PodSandboxConfig,
    options: Option<&cri::NamespaceOption>,
) -> Result<Option<IdMaps>, Error> {
    let of_pod = user_namespace(pod)?;
    if let Some(asked) = options.and_then(|options| options.userns_options.as_ref())
        && read(asked)? != of_pod
    {
        return Err(Error::invalid(MODE, asked.mode.to_string(), "and mappings must be those of the pod"));
    }
    Ok(of_pod)
}

fn read(asked: &cri::UserNamespace) -> Result<Option<IdMaps>, Error> {
    const UIDS: &str = "namespace_options.userns_options.uids";
    const GIDS: &str = "namespace_options.userns_options.gids";
    match NamespaceMode::try_from(asked.mode) {
        Ok(NamespaceMode::Node) if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err(Error::invalid(MODE, "NODE", "can't be beside mappings")),
        Ok(NamespaceMode::Pod) => {
            Ok(Some(IdMaps { uids: vec![one(UIDS, &asked.uids)?], gids: vec![one(GIDS, &asked.gids)?] }))
        }
        _ => Err(Error::invalid(MODE, asked.mode.to_string(), "must be POD or NODE")),
    }
}

/// The kubelet sends one range, which begins with root; so do containerd and CRI-O take it.
fn one(field: &'static str, map: &[cri::IdMapping]) -> Result<LinuxIdMapping, Error> {
    let shown = || map.iter().map(shown).collect::<Vec<_>>().join(", ");
    match map {
        [range] if range.container_id == 0 => mapping(field, range),
        [_] => Err(Error::invalid(field, shown(), "must map the container's id 0")),
        _ => Err(Error::invalid(field, shown(), "must be one mapping")),
    }
}

fn shown(range: &cri::IdMapping) -> String {
    format!("{}:{}:{}", range.container_id, range.host_id, range.length)
}

/// The last id is none: the kernel's calls take it for "leave as it is".
fn mapping(field: &'static str, range: &cri::IdMapping) -> Result<LinuxIdMapping, Error> {
    let last = |first: u32| first.checked_add(range.length).filter(|end| range.length > 0 && *end < u32::MAX);
    if last(range.host_id).is_none() || last(range.container_id).is_none() {
        let reason = "must be of at least one id, and none above 4294967294";
        return Err(Error::invalid(field, shown(range), reason));
    }
    LinuxIdMappingBuilder::default()
        .container_id(range.container_id)
        .host_id(range.host_id)
        .size(range.length)
        .build()
        .map_err(|_| Error::invalid(field, shown(range), "is no mapping"))
}

/// The mappings of a mount; `None`: it has none.
pub(super) fn of_mount(mount: &cri::Mount) -> Result<Option<IdMaps>, Error> {
    const UIDS: &str = "mounts[].uidMappings";
    const GIDS: &str = "mounts[].gidMappings";
    // The kernel takes no more in one map (user_namespaces(7)).
    const MAX: usize = 340;
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(None);
    }
    let read = |field, map: &[cri::IdMapping]| -> Result<Vec<LinuxIdMapping>, Error> {
        if map.is_empty() || map.len() > MAX {
            let path = mount.container_path.as_str();
            return Err(Error::invalid(
                field,
                path,
                "must be 1 to 340 mappings where the other ids are mapped",
            ));
        }
        map.iter().map(|range| mapping(field, range)).collect()
    };
    Ok(Some(IdMaps { uids: read(UIDS, &mount.uid_mappings)?, gids: read(GIDS, &mount.gid_mappings)? }))
}

/// Refuses a user or group who is nobody in the namespace.
pub(super) fn check_user(maps: &IdMaps, user: &User) -> Result<(), Error> {
    let unmapped = |id: u32| {
        let reason = "is not among the ids of the pod's user namespace";
        Err(Error::invalid("the container's user or group", id.to_string(), reason))
    };
    if !has(&maps.uids, user.uid) {
        return unmapped(user.uid);
    }
    match user.groups.iter().chain([&user.gid]).find(|gid| !has(&maps.gids, **gid)) {
        Some(gid) => unmapped(*gid),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::error::{Classify, Kind};

    fn range(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping { host_id, container_id, length }
    }

    fn options(
        mode: NamespaceMode,
        uids: &[cri::IdMapping],
        gids: &[cri::IdMapping],
    ) -> cri::NamespaceOption {
        let userns = cri::UserNamespace { mode: mode as i32, uids: uids.to_vec(), gids: gids.to_vec() };
        cri::NamespaceOption {
            pid: NamespaceMode::Container as i32,
            userns_options: Some(userns),
            ..Default::default()
        }
    }

    fn pod(options: cri::NamespaceOption) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.pod_context().namespace_options = Some(options);
        fixture
    }

    #[test]
    fn what_the_kubelet_sends() {
        let map = [range(0, 131_072, 65_536)];
        let fixture = pod(options(NamespaceMode::Pod, &map, &map));
        let maps = user_namespace(&fixture.pod).unwrap().unwrap();
        assert_eq!(maps.texts(), ("0:131072:65536".to_owned(), "0:131072:65536".to_owned()));
        assert!(maps.has_group(65_535) && !maps.has_group(65_536));
        let node = pod(options(NamespaceMode::Node, &[], &[]));
        assert_eq!(user_namespace(&node.pod).unwrap(), None);
        assert_eq!(user_namespace(&Fixture::new().pod).unwrap(), None);
    }

    #[test]
    fn contradictions_and_bounds() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = range(0, 65_536, 65_536);
        for (mode, uids, gids, text) in [
            (Pod, vec![], vec![], "one mapping"),
            (Pod, vec![good], vec![], "gids"),
            (Pod, vec![good, range(65_536, 200_000, 1)], vec![good], "one mapping"),
            (Pod, vec![range(1, 65_536, 65_536)], vec![good], "id 0"),
            (Pod, vec![range(0, 65_536, 0)], vec![good], "at least one"),
            (Pod, vec![good], vec![range(0, u32::MAX, 1)], "4294967294"),
            (Pod, vec![range(0, 4_294_901_760, 65_536)], vec![good], "4294967294"),
            (Node, vec![good], vec![], "beside mappings"),
            (Container, vec![], vec![], "POD or NODE"),
            (Target, vec![good], vec![good], "POD or NODE"),
        ] {
            let fixture = pod(options(mode, &uids, &gids));
            let error = user_namespace(&fixture.pod).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn namespaces_of_the_node_beside_it() {
        let map = [range(0, 65_536, 65_536)];
        let node = NamespaceMode::Node as i32;
        let mut asked = options(NamespaceMode::Pod, &map, &map);
        asked.network = node;
        assert!(user_namespace(&pod(asked.clone()).pod).unwrap().is_some());
        for wrong in
            [cri::NamespaceOption { pid: node, ..asked.clone() }, cri::NamespaceOption { ipc: node, ..asked }]
        {
            let error = user_namespace(&pod(wrong).pod).unwrap_err().to_string();
            assert!(error.contains("NODE"), "{error}");
        }
    }

    #[test]
    fn a_container_has_its_pods() {
        let map = [range(0, 65_536, 65_536)];
        let other = [range(0, 131_072, 65_536)];
        let asked = options(NamespaceMode::Pod, &map, &map);
        let fixture = pod(asked.clone());
        assert!(of_container(&fixture.pod, None).unwrap().is_some());
        assert!(of_container(&fixture.pod, Some(&asked)).unwrap().is_some());
        for wrong in [options(NamespaceMode::Pod, &map, &other), options(NamespaceMode::Node, &[], &[])] {
            let error = of_container(&fixture.pod, Some(&wrong)).unwrap_err().to_string();
            assert!(error.contains("those of the pod"), "{error}");
        }
        assert!(of_container(&Fixture::new().pod, Some(&asked)).is_err());
    }

    #[test]
    fn missing_support_is_named() {
        let map = [range(0, 65_536, 65_536)];
        let mut fixture = pod(options(NamespaceMode::Pod, &map, &map));
        let check = |fixture: &Fixture| check_user_namespace(&fixture.pod, &fixture.host, &fixture.handler);
        assert_eq!(check(&fixture).unwrap_err().kind(), Kind::Unimplemented);
        fixture.handler.user_namespaces = true;
        check(&fixture).unwrap();
        fixture.host.no_user_namespaces = Some("idmapped tmpfs needs Linux 6.3".into());
        let error = check(&fixture).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("Linux 6.3"), "{error}");
        fixture.pod_context().namespace_options = None;
        check(&fixture).unwrap();
    }

    #[test]
    fn users_are_inside() {
        let map = [range(0, 65_536, 1000)];
        let fixture = pod(options(NamespaceMode::Pod, &map, &map));
        let maps = user_namespace(&fixture.pod).unwrap().unwrap();
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
        check_user(&maps, &user(999, 999, &[999, 5])).unwrap();
        for wrong in [user(1000, 0, &[0]), user(0, 1000, &[]), user(0, 0, &[0, 1000])] {
            assert!(check_user(&maps, &wrong).unwrap_err().to_string().contains("\"1000\""));
        }
    }
}
