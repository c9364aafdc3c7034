//! Devices: the nodes in the container's `/dev`, and the cgroup's rules for using them.
//!
//! The rules begin with "nothing"; what every container needs (null, zero, random, tty, ptmx, …) the OCI runtime adds
//! itself, to the nodes and to the rules.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{Error, SpecInput};

/// A directory of devices has some hundred at most; a tree that goes on is not one.
const MAX_DEVICES: usize = 4096;
const MAX_DEPTH: usize = 8;

/// The nodes and the rules.
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
    /// Where on the host each node is, by its path in the container.
    sources: BTreeMap<PathBuf, PathBuf>,
}

/// Builds both.
pub(super) fn build(input: &SpecInput<'_>) -> Result<Devices, Error> {
    let rules = vec![rule(false, None, "rwm")];
    let mut devices = Devices { nodes: Vec::new(), rules, sources: BTreeMap::new() };
    let handler = input.handler;
    if super::privileged(input) {
        if !handler.privileged_without_host_devices {
            devices.host(&input.host.dev)?;
        }
        if !handler.privileged_without_host_devices
            || handler.privileged_without_host_devices_all_devices_allowed
        {
            devices.rules = vec![rule(true, None, "rwm")];
        }
    }
    for device in &input.container.devices {
        devices.asked(device)?;
    }
    Ok(devices)
}

impl Devices {
    /// Takes the nodes and gives the host's, as sources and paths in the container, to be bound instead. Not those that the
    /// OCI runtime binds itself.
    pub(super) fn binds(&mut self) -> Vec<(PathBuf, PathBuf)> {
        const DEFAULT: [&str; 6] =
            ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/urandom", "/dev/random"];
        self.nodes.clear();
        let sources = std::mem::take(&mut self.sources);
        let own =
            |source: &Path, target: &Path| source == target && DEFAULT.iter().any(|path| target == *path);
        sources
            .into_iter()
            .filter(|(target, source)| !own(source, target))
            .map(|(target, source)| (source, target))
            .collect()
    }

    /// One device, or directory of devices, of the container's configuration.
    fn asked(&mut self, device: &crate::proto::runtime::v1::Device) -> Result<(), Error> {
        const HOST: &str = "devices[].host_path";
        let access = match device.permissions.as_str() {
            "" => "rwm",
            access if access.bytes().all(|b| b"rwm".contains(&b)) => access,
            other => {
                return Err(Error::invalid("devices[].permissions", other, "must be of the letters r, w, m"));
            }
        };
        let given = Path::new(&device.host_path);
        if !given.is_absolute() {
            return Err(Error::invalid(HOST, &device.host_path, "must be absolute"));
        }
        let target = match device.container_path.as_str() {
            "" => given,
            path => Path::new(path),
        };
        let escapes = target.components().any(|c| matches!(c, std::path::Component::ParentDir));
        if !target.is_absolute() || escapes {
            let path = target.display().to_string();
            return Err(Error::invalid(
                "devices[].container_path",
                path,
                "must be absolute and without '..'",
            ));
        }
        let fail = |source| Error::HostPath { field: HOST, path: given.to_path_buf(), source };
        let source = given.canonicalize().map_err(fail)?;
        // Every device adds a rule, also one whose node takes another's place.
        let before = self.rules.len();
        if source.is_dir() {
            self.walk(&source, target, access, 0).map_err(fail)?;
        } else {
            self.add(&source, target.to_path_buf(), access).map_err(fail)?;
        }
        if self.rules.len() == before {
            return Err(Error::invalid(HOST, &device.host_path, "is not a device and has none in it"));
        }
        Ok(())
    }

    /// All of the host's. They are allowed wholesale, not one by one.
    fn host(&mut self, dev: &Path) -> Result<(), Error> {
        let fail = |source| Error::HostPath { field: "privileged", path: dev.to_path_buf(), source };
        self.walk(dev, Path::new("/dev"), "rwm", 0).map_err(fail)?;
        self.rules.truncate(1);
        Ok(())
    }

    fn walk(&mut self, source: &Path, target: &Path, access: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Ok(());
        }
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let name = entry.file_name();
            // What the OCI runtime makes itself, or mounts over.
            let skip =
                ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx", "core"];
            if depth == 0 && skip.iter().any(|s| name == *s) {
                continue;
            }
            let Ok(kind) = entry.file_type() else { continue }; // gone meanwhile
            if kind.is_dir() {
                self.walk(&entry.path(), &target.join(&name), access, depth + 1)?;
            } else if kind.is_block_device() || kind.is_char_device() {
                match self.add(&entry.path(), target.join(&name), access) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, source: &Path, target: PathBuf, access: &str) -> io::Result<()> {
        let meta = fs::symlink_metadata(source)?;
        let typ = if meta.file_type().is_block_device() {
            LinuxDeviceType::B
        } else if meta.file_type().is_char_device() {
            LinuxDeviceType::C
        } else {
            return Ok(());
        };
        if self.nodes.len() >= MAX_DEVICES {
            return Err(io::Error::other(format!("more than {MAX_DEVICES} devices")));
        }
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let mut node = LinuxDevice::default();
        node.set_path(target)
            .set_typ(typ)
            .set_major(major.into())
            .set_minor(minor.into())
            .set_file_mode(Some(meta.permissions().mode() & 0o7777))
            .set_uid(Some(meta.uid()))
            .set_gid(Some(meta.gid()));
        // The later wins, as in the container's configuration the more specific comes later.
        self.nodes.retain(|other| other.path() != node.path());
        self.sources.insert(node.path().clone(), source.to_path_buf());
        self.nodes.push(node);
        self.rules.push(rule(true, Some((typ, major.into(), minor.into())), access));
        Ok(())
    }
}

fn rule(allow: bool, device: Option<(LinuxDeviceType, i64, i64)>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(device.map_or(LinuxDeviceType::A, |(typ, ..)| typ)))
        .set_major(device.map(|(_, major, _)| major))
        .set_minor(device.map(|(.., minor)| minor))
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::Device;

    fn device(host: &str, container: &str, permissions: &str) -> Device {
        Device { host_path: host.into(), container_path: container.into(), permissions: permissions.into() }
    }

    fn rules(devices: &Devices) -> Vec<String> {
        let word = |allow| if allow { "allow" } else { "deny" };
        devices.rules.iter().map(|r| format!("{} {r}", word(r.allow()))).collect()
    }

    #[test]
    fn nothing_asked() {
        let devices = build(&Fixture::new().input()).unwrap();
        assert!(devices.nodes.is_empty());
        assert_eq!(rules(&devices), ["deny a *:* rwm"]);
    }

    #[test]
    fn asked() {
        let mut fixture = Fixture::new();
        fixture.container.devices = vec![
            device("/dev/null", "/dev/nil", "r"),
            device("/dev/zero", "", ""),
            device("/dev/full", "/dev/nil", "rw"),
        ];
        let devices = build(&fixture.input()).unwrap();
        assert_eq!(rules(&devices), ["deny a *:* rwm", "allow c 1:3 r", "allow c 1:5 rwm", "allow c 1:7 rw"]);
        let mut bound = build(&fixture.input()).unwrap();
        assert_eq!(bound.binds(), [(PathBuf::from("/dev/full"), PathBuf::from("/dev/nil"))]);
        assert!(bound.nodes.is_empty());
        let shown: Vec<_> =
            devices.nodes.iter().map(|n| (n.path().display().to_string(), n.minor())).collect();
        assert_eq!(shown, [("/dev/zero".to_owned(), 5), ("/dev/nil".to_owned(), 7)]);
    }

    #[test]
    fn directories() {
        let dir = tempfile::Builder::new().prefix("berth-spec-devices").tempdir_in("/run").unwrap();
        let deep = dir.path().join("by/id");
        fs::create_dir_all(&deep).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let make = |path: PathBuf, minor| {
            let dev = rustix::fs::makedev(1, minor);
            let kind = rustix::fs::FileType::CharacterDevice;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, dev).unwrap();
        };
        make(deep.join("a"), 3);
        let mut fixture = Fixture::new();
        fixture.container.devices = vec![device(dir.path().to_str().unwrap(), "/dev/x", "rw")];
        let devices = build(&fixture.input()).unwrap();
        assert_eq!(devices.nodes.len(), 1);
        assert_eq!(devices.nodes[0].path(), Path::new("/dev/x/by/id/a"));
        assert_eq!(rules(&devices)[1], "allow c 1:3 rw");

        // A privileged container gets all of the host's, allowed wholesale.
        make(dir.path().join("console"), 1);
        fixture.container.devices.clear();
        fixture.host.dev = dir.path().to_path_buf();
        fixture.context().privileged = true;
        let devices = build(&fixture.input()).unwrap();
        assert_eq!(rules(&devices), ["allow a *:* rwm"]);
        assert_eq!(devices.nodes.len(), 1);
        fixture.handler.privileged_without_host_devices = true;
        let devices = build(&fixture.input()).unwrap();
        assert_eq!((devices.nodes.len(), rules(&devices)), (0, vec!["deny a *:* rwm".to_owned()]));
        fixture.handler.privileged_without_host_devices_all_devices_allowed = true;
        assert_eq!(rules(&build(&fixture.input()).unwrap()), ["allow a *:* rwm"]);
    }

    #[test]
    fn refused() {
        for asked in [
            device("/dev/no-such", "", ""),
            device("dev/null", "", ""),
            device("/dev/null", "null", ""),
            device("/dev/null", "/dev/../etc/x", ""),
            device("/dev/null", "", "rx"),
            device("/etc/passwd", "/dev/p", ""),
        ] {
            let mut fixture = Fixture::new();
            let text = format!("{asked:?}");
            fixture.container.devices = vec![asked];
            assert!(build(&fixture.input()).is_err(), "{text}");
        }
    }
}
