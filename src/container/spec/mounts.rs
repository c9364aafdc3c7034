//! Mounts: what every container has, the pod's files, and what the container asks for.
//!
//! A mount the container asks for takes the place of a default one at the same path (and one at `/dev` of all below it).
//! All are sorted by depth, so that `/data/cache` is mounted into `/data` whatever the order they came in. A source
//! that does not exist is refused by name: the kubelet makes `DirectoryOrCreate` and the like itself, and a directory
//! made silently, as root and on the wrong disk, has hidden many a forgotten mount.

mod image_volume;

use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::mountinfo::{self, MountTable};
use super::{Error, IdMaps, SpecInput, namespaces, userns};
use crate::cgroup::Mode;
use crate::proto::runtime::v1 as cri;
use crate::proto::runtime::v1::MountPropagation;

/// The container's mounts, and the propagation its root needs for them.
pub(super) struct Mounts {
    pub(super) list: Vec<Mount>,
    pub(super) rootfs_propagation: Option<&'static str>,
}

/// Builds the list of mounts.
pub(super) fn build(
    input: &SpecInput<'_>,
    maps: Option<&IdMaps>,
    label: Option<&str>,
) -> Result<Mounts, Error> {
    let mut asked = Vec::new();
    let mut rootfs_propagation = None;
    let mut table = None;
    let labelled = label.is_some() && input.handler.stages_images;
    for (index, mount) in input.container.mounts.iter().enumerate() {
        if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
            let layers = input.image_layers.get(index).map(Vec::as_slice).unwrap_or_default();
            asked.push(image_volume::build(mount, layers, maps, labelled)?);
            continue;
        }
        asked.push(one(input, mount, maps.is_some(), &mut table)?);
        match MountPropagation::try_from(mount.propagation) {
            Ok(MountPropagation::PropagationBidirectional) => rootfs_propagation = Some("shared"),
            Ok(MountPropagation::PropagationHostToContainer) => {
                rootfs_propagation = rootfs_propagation.or(Some("slave"));
            }
            _ => {}
        }
    }
    for (index, mount) in asked.iter().enumerate() {
        if asked[..index].iter().any(|other| other.destination() == mount.destination()) {
            let path = mount.destination().display().to_string();
            return Err(Error::invalid("mounts[].container_path", path, "is mounted twice"));
        }
    }

    let dev_asked = asked.iter().any(|m| m.destination() == Path::new("/dev"));
    let mut list: Vec<Mount> = defaults(input, maps);
    list.extend(pod_files(input, maps));
    let replaced = |destination: &Path| {
        asked.iter().any(|other| other.destination() == destination)
            || (dev_asked && destination.starts_with("/dev"))
    };
    list.retain(|mount| !replaced(mount.destination()));
    list.extend(input.volumes.iter().filter(|volume| !replaced(&volume.destination)).map(|volume| {
        let mut mount = mount("bind", "/", &volume.source, &["rbind", "rprivate", "rw"]);
        mount.set_destination(volume.destination.clone());
        mapped(mount, maps)
    }));
    list.extend(asked);
    sort(&mut list);
    // Nothing that the host mounts later may show in a private volume. The runtime makes all mounts of the namespace what is
    // said here for the root, and heeds no volume's own word more strictly than that.
    Ok(Mounts { list, rootfs_propagation: rootfs_propagation.or(Some("private")) })
}

impl Mounts {
    /// Adds bind mounts of device nodes: sources and paths in the container.
    pub(super) fn add(&mut self, devices: Vec<(PathBuf, PathBuf)>) {
        let there: HashSet<PathBuf> = self.list.iter().map(|mount| mount.destination().clone()).collect();
        for (source, target) in devices.into_iter().filter(|(_, target)| !there.contains(target)) {
            let mut bind = mount("bind", "/", source, &["bind", "rprivate", "nosuid", "noexec", "rw"]);
            bind.set_destination(target);
            self.list.push(bind);
        }
        sort(&mut self.list);
    }
}

/// The sort is stable: at one depth the order of arrival stays.
fn sort(list: &mut [Mount]) {
    list.sort_by_key(|mount| mount.destination().components().count());
}

/// The mount with the owners of its files shown as `maps` says.
fn mapped(mut mount: Mount, maps: Option<&IdMaps>) -> Mount {
    if let Some(maps) = maps {
        mount.set_uid_mappings(Some(maps.uids.clone())).set_gid_mappings(Some(maps.gids.clone()));
    }
    mount
}

fn defaults(input: &SpecInput<'_>, maps: Option<&IdMaps>) -> Vec<Mount> {
    let privileged = super::privileged(input);
    let writable = if privileged { "rw" } else { "ro" };
    // With v1 there is no namespace that all hierarchies heed, and writing is power over the host.
    let own = input.handler.cgroup_writable && input.host.cgroup == Mode::Unified;
    let cgroup = if privileged || own { "rw" } else { "ro" };
    let safe = ["nosuid", "noexec", "nodev"];
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    // The group tty, where there is one.
    if maps.is_none_or(|maps| maps.has_group(5)) {
        terminals.push("gid=5");
    }
    let system = if maps.is_some() && namespaces::host_network(input.pod) {
        // A sysfs shows a network namespace, and root of a user namespace can't mount that of the host's.
        mount("bind", "/sys", "/sys", &[&["rbind", "rprivate"], &safe[..], &["ro", "rro"]].concat())
    } else {
        mount("sysfs", "/sys", "sysfs", &[&safe[..], &[writable]].concat())
    };
    vec![
        mount("proc", "/proc", "proc", &safe),
        mount("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", "devpts", &terminals),
        mount("mqueue", "/dev/mqueue", "mqueue", &safe),
        system,
        mount("cgroup", "/sys/fs/cgroup", "cgroup", &[&safe[..], &["relatime", cgroup]].concat()),
    ]
}

fn pod_files(input: &SpecInput<'_>, maps: Option<&IdMaps>) -> Vec<Mount> {
    let files = &input.files;
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let access = if context.is_some_and(|c| c.readonly_rootfs) { "ro" } else { "rw" };
    let mut list = Vec::new();
    for (source, destination) in [
        (files.hosts, "/etc/hosts"),
        (files.hostname, "/etc/hostname"),
        (files.resolv_conf, "/etc/resolv.conf"),
    ] {
        if let Some(source) = source {
            list.push(mapped(mount("bind", destination, source, &["rbind", "rprivate", access]), maps));
        }
    }
    let shm = if namespaces::host_ipc(input.pod) { Some(Path::new("/dev/shm")) } else { files.shm };
    let safe = ["nosuid", "noexec", "nodev"];
    list.push(match shm {
        Some(source) => {
            let options = [&["rbind", "rprivate"], &safe[..], &["rw"]].concat();
            mapped(mount("bind", "/dev/shm", source, &options), maps)
        }
        None => mount("tmpfs", "/dev/shm", "shm", &[&safe[..], &["mode=1777", "size=65536k"]].concat()),
    });
    list
}

/// One mount of the container's configuration.
fn one(
    input: &SpecInput<'_>,
    asked: &cri::Mount,
    user_namespace: bool,
    table: &mut Option<MountTable>,
) -> Result<Mount, Error> {
    const SOURCE: &str = "mounts[].host_path";
    let destination = destination(&asked.container_path)?;
    let unsupported =
        |field, value: &str, feature| Err(Error::Unsupported { field, value: value.to_owned(), feature });
    let maps = userns::of_mount(asked)?;
    if maps.is_some() && !input.handler.user_namespaces {
        return unsupported(
            "mounts[].uidMappings",
            &asked.container_path,
            "idmapped mounts of this runtime handler",
        );
    }
    if asked.host_path.is_empty() {
        return Err(Error::invalid(SOURCE, "", "is missing"));
    }
    let given = Path::new(&asked.host_path);
    if !given.is_absolute() {
        return Err(Error::invalid(SOURCE, &asked.host_path, "must be absolute"));
    }
    // Links are followed now, on the host, not later by whoever mounts.
    let source = given.canonicalize().map_err(|source: io::Error| Error::HostPath {
        field: SOURCE,
        path: given.to_path_buf(),
        source,
    })?;

    let mut options = vec!["rbind"];
    let propagation = MountPropagation::try_from(asked.propagation).map_err(|_| {
        Error::invalid("mounts[].propagation", asked.propagation.to_string(), "no such propagation")
    })?;
    match propagation {
        MountPropagation::PropagationPrivate => options.push("rprivate"),
        MountPropagation::PropagationHostToContainer => {
            mountinfo::check(table, &source, mountinfo::Need::SharedOrSlave)?;
            options.push("rslave");
        }
        MountPropagation::PropagationBidirectional if user_namespace => {
            // mount_namespaces(7): what a less privileged namespace mounts does not propagate out of it.
            let reason = "can't be bidirectional out of a user namespace";
            return Err(Error::invalid("mounts[].propagation", &asked.container_path, reason));
        }
        MountPropagation::PropagationBidirectional => {
            mountinfo::check(table, &source, mountinfo::Need::Shared)?;
            options.push("rshared");
        }
    }
    if asked.recursive_read_only {
        const FIELD: &str = "mounts[].recursive_read_only";
        if !asked.readonly {
            return Err(Error::invalid(FIELD, &asked.container_path, "needs readonly beside it"));
        }
        if propagation != MountPropagation::PropagationPrivate {
            return Err(Error::invalid(FIELD, &asked.container_path, "needs private propagation"));
        }
        if !input.handler.recursive_read_only_mounts {
            return unsupported(
                FIELD,
                &asked.container_path,
                "recursive read-only mounts: they need linux 5.12, and a runtime handler whose features list the mount option rro",
            );
        }
        options.extend(["ro", "rro"]);
    } else {
        options.push(if asked.readonly { "ro" } else { "rw" });
    }
    for option in &asked.mount_options {
        match option.as_str() {
            "noexec" | "nosuid" | "nodev" | "exec" | "suid" | "dev" | "noatime" | "nodiratime"
            | "relatime" => {
                options.push(option);
            }
            _ => return Err(Error::invalid("mounts[].mount_options", option, "no such mount option")),
        }
    }
    let mut result = mount("bind", "/", &source, &options);
    result.set_destination(destination);
    Ok(mapped(result, maps.as_ref()))
}

/// The path in the container, absolute and without `..`: what is left is resolved in the root by the OCI runtime.
pub(crate) fn destination(path: &str) -> Result<PathBuf, Error> {
    const FIELD: &str = "mounts[].container_path";
    if path.is_empty() {
        return Err(Error::invalid(FIELD, path, "is missing"));
    }
    if path.contains('\0') {
        return Err(Error::invalid(FIELD, path, "has a zero byte"));
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") {
        return Err(Error::invalid(FIELD, path, "is the container's root"));
    }
    Ok(clean)
}

fn mount(typ: &str, destination: &str, source: impl AsRef<Path>, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_typ(Some(typ.to_owned()))
        .set_destination(destination.into())
        .set_source(Some(source.as_ref().to_path_buf()))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Volume;
    use super::super::testing::Fixture;
    use super::*;
    use crate::error::{Classify, Kind};
    use crate::proto::runtime::v1::{IdMapping, ImageSpec};

    fn bind(host: &str, container: &str) -> cri::Mount {
        cri::Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
    }

    fn find<'a>(mounts: &'a Mounts, destination: &str) -> &'a Mount {
        mounts.list.iter().find(|m| m.destination() == Path::new(destination)).unwrap()
    }

    fn options(mount: &Mount) -> String {
        mount.options().clone().unwrap_or_default().join(",")
    }

    #[test]
    fn defaults_and_pod_files() {
        let fixture = Fixture::new();
        let mounts = build(&fixture.input(), None, None).unwrap();
        let shown: Vec<_> = mounts.list.iter().map(|m| m.destination().display().to_string()).collect();
        assert_eq!(
            shown,
            [
                "/proc",
                "/dev",
                "/sys",
                "/dev/pts",
                "/dev/mqueue",
                "/etc/hosts",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/dev/shm",
                "/sys/fs/cgroup"
            ]
        );
        assert_eq!(find(&mounts, "/dev/shm").source().as_deref(), Some(Path::new("/pod/shm")));
        assert_eq!(options(find(&mounts, "/etc/hosts")), "rbind,rprivate,rw");
        assert!(options(find(&mounts, "/sys")).ends_with(",ro"));
        assert!(options(find(&mounts, "/sys/fs/cgroup")).ends_with(",ro"));
        assert_eq!(mounts.rootfs_propagation, Some("private"));
    }

    #[test]
    fn privileged_readonly_and_host_ipc() {
        let mut fixture = Fixture::new();
        fixture.context().privileged = true;
        fixture.context().readonly_rootfs = true;
        fixture.pod_context().namespace_options =
            Some(cri::NamespaceOption { ipc: cri::NamespaceMode::Node as i32, ..Default::default() });
        let mounts = build(&fixture.input(), None, None).unwrap();
        assert!(options(find(&mounts, "/sys")).ends_with(",rw"));
        assert!(options(find(&mounts, "/sys/fs/cgroup")).ends_with(",rw"));
        assert!(options(find(&mounts, "/etc/hosts")).ends_with(",ro"));
        assert_eq!(find(&mounts, "/dev/shm").source().as_deref(), Some(Path::new("/dev/shm")));
    }

    #[test]
    fn cgroups_are_writable_where_they_are_the_containers_own() {
        let mut fixture = Fixture::new();
        fixture.handler.cgroup_writable = true;
        for (mode, end) in [(Mode::Hybrid, ",ro"), (Mode::Unified, ",rw")] {
            fixture.host.cgroup = mode;
            let mounts = build(&fixture.input(), None, None).unwrap();
            assert!(options(find(&mounts, "/sys/fs/cgroup")).ends_with(end), "{mode:?}");
        }
    }

    #[test]
    fn asked_ones_replace_defaults_and_are_sorted() {
        let mut fixture = Fixture::new();
        fixture.container.mounts = vec![
            bind("/usr", "/data/cache/"),
            bind("/run", "data"),
            bind("/tmp", "/etc/hosts"),
            bind("/tmp", "/dev/shm"),
        ];
        let mounts = build(&fixture.input(), None, None).unwrap();
        assert_eq!(find(&mounts, "/etc/hosts").source().as_deref(), Some(Path::new("/tmp")));
        assert_eq!(find(&mounts, "/dev/shm").source().as_deref(), Some(Path::new("/tmp")));
        assert_eq!(mounts.list.iter().filter(|m| m.destination() == Path::new("/etc/hosts")).count(), 1);
        let at = |path: &str| mounts.list.iter().position(|m| m.destination() == Path::new(path)).unwrap();
        assert!(at("/data") < at("/data/cache"));

        fixture.container.mounts = vec![bind("/dev", "/dev")];
        let mounts = build(&fixture.input(), None, None).unwrap();
        assert_eq!(mounts.list.iter().filter(|m| m.destination().starts_with("/dev")).count(), 1);
    }

    #[test]
    fn flags() {
        let mut fixture = Fixture::new();
        fixture.handler.recursive_read_only_mounts = true;
        let read_only = cri::Mount { readonly: true, ..bind("/usr", "/a") };
        let recursive = cri::Mount { recursive_read_only: true, ..read_only.clone() };
        let extra = cri::Mount { mount_options: vec!["noexec".into()], ..bind("/usr", "/a") };
        for (mount, want) in [
            (bind("/usr", "/a"), "rbind,rprivate,rw"),
            (read_only, "rbind,rprivate,ro"),
            (recursive.clone(), "rbind,rprivate,ro,rro"),
            (extra, "rbind,rprivate,rw,noexec"),
        ] {
            fixture.container.mounts = vec![mount];
            assert_eq!(options(find(&build(&fixture.input(), None, None).unwrap(), "/a")), want);
        }
        fixture.handler.recursive_read_only_mounts = false;
        fixture.container.mounts = vec![recursive];
        assert_eq!(build(&fixture.input(), None, None).err().unwrap().kind(), Kind::Unimplemented);
    }

    #[test]
    fn in_a_user_namespace() {
        let mut fixture = Fixture::new();
        fixture.handler.user_namespaces = true;
        let range = IdMapping { host_id: 65_536, container_id: 0, length: 4 };
        let map = IdMapping { host_id: 7, container_id: 8, length: 9 };
        let (uid_mappings, gid_mappings) = (vec![map], vec![map]);
        let volume = cri::Mount { uid_mappings, gid_mappings, ..bind("/usr", "/volume") };
        fixture.container.mounts = vec![volume, bind("/run", "/plain")];
        fixture.volumes = vec![Volume { destination: "/data".into(), source: "/volumes/0".into() }];
        let own = cri::Mount { uid_mappings: vec![range], gid_mappings: vec![range], ..Default::default() };
        let maps = userns::of_mount(&own).unwrap().unwrap();
        let mut mounts = build(&fixture.input(), Some(&maps), None).unwrap();
        let shown = |mounts: &Mounts, path: &str| {
            let mount = find(mounts, path);
            let ids = |list: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| {
                list.as_ref().map(|list| (list[0].container_id(), list[0].host_id(), list[0].size()))
            };
            assert_eq!(ids(mount.uid_mappings()), ids(mount.gid_mappings()));
            ids(mount.uid_mappings())
        };
        for path in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/data"] {
            assert_eq!(shown(&mounts, path), Some((0, 65_536, 4)), "{path}");
        }
        assert_eq!(shown(&mounts, "/volume"), Some((8, 7, 9)));
        assert_eq!(shown(&mounts, "/plain"), None);
        // There is no group 5.
        assert!(!options(find(&mounts, "/dev/pts")).contains("gid="));
        mounts
            .add(vec![("/dev/fuse".into(), "/dev/a/b/fuse".into()), ("/dev/null".into(), "/volume".into())]);
        assert_eq!(options(find(&mounts, "/dev/a/b/fuse")), "bind,rprivate,nosuid,noexec,rw");
        assert_eq!(find(&mounts, "/volume").source().as_deref(), Some(Path::new("/usr")));

        fixture.pod_context().namespace_options =
            Some(cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() });
        let mounts = build(&fixture.input(), Some(&maps), None).unwrap();
        assert_eq!(options(find(&mounts, "/sys")), "rbind,rprivate,nosuid,noexec,nodev,ro,rro");
        fixture.container.mounts = vec![cri::Mount { propagation: 2, ..bind("/usr", "/a") }];
        let error = build(&fixture.input(), Some(&maps), None).err().unwrap();
        assert!(error.to_string().contains("bidirectional"), "{error}");
    }

    #[test]
    fn declared_volumes_give_way_to_mounts() {
        let mut fixture = Fixture::new();
        fixture.volumes = ["/data", "/cache"]
            .map(|path| Volume {
                destination: path.into(),
                source: PathBuf::from("/volumes").join(&path[1..]),
            })
            .to_vec();
        fixture.container.mounts = vec![bind("/usr", "/cache")];
        let mounts = build(&fixture.input(), None, None).unwrap();
        assert_eq!(find(&mounts, "/data").source().as_deref(), Some(Path::new("/volumes/data")));
        assert_eq!(options(find(&mounts, "/data")), "rbind,rprivate,rw");
        assert_eq!(find(&mounts, "/cache").source().as_deref(), Some(Path::new("/usr")));
    }

    #[test]
    fn links_are_followed_on_the_host() {
        let dir = tempfile::Builder::new().prefix("berth-spec-mounts").tempdir_in("/run").unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let mut fixture = Fixture::new();
        fixture.container.mounts = vec![bind(dir.path().join("link").to_str().unwrap(), "/a")];
        let mounts = build(&fixture.input(), None, None).unwrap();
        assert_eq!(find(&mounts, "/a").source().as_deref(), Some(Path::new("/usr")));
    }

    #[test]
    fn refused() {
        let image = ImageSpec { image: "busybox".into(), ..Default::default() };
        let mapping = vec![IdMapping { host_id: 1, container_id: 0, length: 1 }];
        for (mounts, kind, text) in [
            (vec![bind("/no/such/thing", "/a")], Kind::InvalidArgument, "/no/such/thing"),
            (vec![bind("", "/a")], Kind::InvalidArgument, "is missing"),
            (vec![bind("usr", "/a")], Kind::InvalidArgument, "must be absolute"),
            (vec![bind("/usr", "")], Kind::InvalidArgument, "is missing"),
            (vec![bind("/usr", "/../.")], Kind::InvalidArgument, "root"),
            (vec![bind("/usr", "/a\0b")], Kind::InvalidArgument, "zero byte"),
            (vec![bind("/usr", "/a"), bind("/tmp", "/a/")], Kind::InvalidArgument, "twice"),
            (vec![cri::Mount { propagation: 7, ..bind("/usr", "/a") }], Kind::InvalidArgument, "\"7\""),
            (vec![cri::Mount { image: Some(image), ..bind("", "/a") }], Kind::InvalidArgument, "read-only"),
            (
                vec![cri::Mount { uid_mappings: mapping.clone(), ..bind("/usr", "/a") }],
                Kind::InvalidArgument,
                "gidMappings",
            ),
            (
                vec![cri::Mount {
                    uid_mappings: mapping.clone(),
                    gid_mappings: mapping.clone(),
                    ..bind("/usr", "/a")
                }],
                Kind::Unimplemented,
                "idmapped",
            ),
            (
                vec![cri::Mount { recursive_read_only: true, ..bind("/usr", "/a") }],
                Kind::InvalidArgument,
                "needs readonly",
            ),
            (
                vec![cri::Mount {
                    recursive_read_only: true,
                    readonly: true,
                    propagation: 2,
                    ..bind("/proc", "/a")
                }],
                Kind::FailedPrecondition,
                "mount --make-rshared /proc",
            ),
            (
                vec![cri::Mount { mount_options: vec!["size=1".into()], ..bind("/usr", "/a") }],
                Kind::InvalidArgument,
                "size=1",
            ),
        ] {
            let mut fixture = Fixture::new();
            fixture.container.mounts = mounts;
            let error = build(&fixture.input(), None, None).err().unwrap();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
