//! Names of cgroups, for both drivers.
//!
//! ```text
//! cgroupfs   cgroup_parent /kubepods/burstable/podX        container /kubepods/burstable/podX/<id>
//! systemd    cgroup_parent kubepods-burstable-podX.slice   container kubepods-burstable-podX.slice:cri-berth:<id>
//!            on disk /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/cri-berth-<id>.scope
//! ```
//!
//! The kubelet takes what follows the last `-` of a scope's name for the container's id.

use std::path::{Component, Path, PathBuf};

use crate::error::{Classify, Kind};

/// Before the id in a scope's name.
const PREFIX: &str = "cri-berth";

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Driver {
    /// systemd, asked over D-Bus.
    Systemd,
    /// The OCI runtime, by making directories.
    Cgroupfs,
}

/// Why a driver or a name can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Not the name of a driver.
    #[error("cgroup driver {0:?}: must be auto, systemd or cgroupfs")]
    Unknown(String),
    /// systemd is asked for and is not there.
    #[error(
        "cgroup driver systemd: systemd does not run on this machine (no /run/systemd/system); use cgroupfs"
    )]
    NoSystemd,
    /// A parent that can't be one with this driver.
    #[error("cgroup_parent {parent:?}: {reason}")]
    Parent {
        /// What the caller sent.
        parent: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Classify for DriverError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown(_) | Self::Parent { .. } => Kind::InvalidArgument,
            Self::NoSystemd => Kind::FailedPrecondition,
        }
    }
}

impl Driver {
    /// The driver of a configuration's `auto`, `systemd` or `cgroupfs`, on this machine.
    pub fn detect(configured: &str) -> Result<Self, DriverError> {
        // sd_booted(3): the directory exists when, and only when, systemd runs as init.
        Self::choose(configured, Path::new("/run/systemd/system").is_dir())
    }

    fn choose(configured: &str, systemd: bool) -> Result<Self, DriverError> {
        match (configured, systemd) {
            ("auto" | "", true) | ("systemd", true) => Ok(Self::Systemd),
            ("auto" | "", false) | ("cgroupfs", _) => Ok(Self::Cgroupfs),
            ("systemd", false) => Err(DriverError::NoSystemd),
            (other, _) => Err(DriverError::Unknown(other.to_owned())),
        }
    }
}

/// Names cgroups by a driver's rules.
#[derive(Clone, Debug)]
pub struct Naming {
    driver: Driver,
    root: String,
}

impl Naming {
    /// `root` is the parent of pods that name none, such as `/berth`.
    pub fn new(driver: Driver, root: &str) -> Self {
        Self { driver, root: root.to_owned() }
    }

    /// The parent of pods that name none, where it is ours alone.
    pub fn own_root(&self) -> Option<&str> {
        (self.driver == Driver::Cgroupfs).then_some(self.root.as_str())
    }

    /// The driver that names are for.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The parent of a pod's containers: its `cgroup_parent`, or one of its own under our root. The second value says
    /// whether it is ours to make and remove.
    pub fn pod(&self, cgroup_parent: &str, pod_id: &str) -> Result<(String, bool), DriverError> {
        let refuse = |reason| DriverError::Parent { parent: cgroup_parent.to_owned(), reason };
        if cgroup_parent.is_empty() {
            let root = self.root.trim_matches('/');
            return Ok(match self.driver {
                Driver::Cgroupfs => (format!("/{root}/{pod_id}"), true),
                // A slice's dashes are its path: system.slice keeps it simple, and systemd removes it itself.
                Driver::Systemd if root.ends_with(".slice") => (root.to_owned(), false),
                Driver::Systemd => (format!("{}.slice", root.replace(['/', '-'], "_")), false),
            });
        }
        if cgroup_parent.contains(['\0', '\n', ':']) {
            return Err(refuse("has a character that no cgroup's name can have here"));
        }
        if Path::new(cgroup_parent).components().any(|c| matches!(c, Component::ParentDir)) {
            return Err(refuse("has '..' in it"));
        }
        match self.driver {
            Driver::Systemd => {
                // The kubelet sends the slice alone; others the path to it.
                let slice = cgroup_parent.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
                slice_path(slice).map_err(refuse)?;
                Ok((slice.to_owned(), false))
            }
            Driver::Cgroupfs if cgroup_parent.ends_with(".slice") && !cgroup_parent.contains('/') => {
                Err(refuse(
                    "is a systemd slice, and the cgroup driver is cgroupfs: kubelet and Berth must use the same",
                ))
            }
            Driver::Cgroupfs => Ok((format!("/{}", cgroup_parent.trim_matches('/')), false)),
        }
    }

    /// A container's `linux.cgroupsPath`, given its parent of [`Naming::pod`].
    pub fn container(&self, parent: &str, container_id: &str) -> String {
        match self.driver {
            Driver::Cgroupfs => format!("{}/{container_id}", parent.trim_end_matches('/')),
            Driver::Systemd => format!("{parent}:{PREFIX}:{container_id}"),
        }
    }

    /// Where a container's cgroup is below the hierarchy's mount point.
    pub fn container_path(&self, parent: &str, container_id: &str) -> Result<PathBuf, DriverError> {
        let path = self.pod_path(parent)?;
        Ok(path.join(match self.driver {
            Driver::Cgroupfs => container_id.to_owned(),
            Driver::Systemd => format!("{PREFIX}-{container_id}.scope"),
        }))
    }

    /// Where a pod's cgroup is below the hierarchy's mount point.
    pub fn pod_path(&self, parent: &str) -> Result<PathBuf, DriverError> {
        match self.driver {
            Driver::Cgroupfs => Ok(PathBuf::from(parent.trim_start_matches('/'))),
            Driver::Systemd => {
                slice_path(parent).map_err(|reason| DriverError::Parent { parent: parent.to_owned(), reason })
            }
        }
    }
}

/// systemd.slice(5): each dash of a slice's name is a step down from the slice of what is before it.
fn slice_path(slice: &str) -> Result<PathBuf, &'static str> {
    let name =
        slice.strip_suffix(".slice").ok_or("is not a systemd slice, and the cgroup driver is systemd")?;
    if name == "-" {
        return Ok(PathBuf::new()); // the root slice
    }
    if name.is_empty() || name.contains('/') || name.split('-').any(str::is_empty) {
        return Err("is not the name of a slice");
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Ok(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn drivers() {
        for (configured, systemd, want) in [
            ("auto", true, Some(Driver::Systemd)),
            ("auto", false, Some(Driver::Cgroupfs)),
            ("", false, Some(Driver::Cgroupfs)),
            ("cgroupfs", true, Some(Driver::Cgroupfs)),
            ("systemd", true, Some(Driver::Systemd)),
            ("systemd", false, None),
            ("openrc", true, None),
        ] {
            assert_eq!(Driver::choose(configured, systemd).ok(), want, "{configured}");
        }
    }

    #[test]
    fn cgroupfs() {
        let naming = Naming::new(Driver::Cgroupfs, "/berth");
        for (parent, want, ours) in [
            ("", "/berth/pod1", true),
            ("/kubepods/burstable/podX/", "/kubepods/burstable/podX", false),
            ("kubepods/podX", "/kubepods/podX", false),
        ] {
            let (path, made) = naming.pod(parent, "pod1").unwrap();
            assert_eq!((path.as_str(), made), (want, ours));
            assert_eq!(naming.container(&path, "c1"), format!("{want}/c1"));
            let on_disk = naming.container_path(&path, "c1").unwrap();
            assert_eq!(on_disk, PathBuf::from(format!("{want}/c1").trim_start_matches('/')));
        }
        for bad in ["/a/../../b", "kubepods-podX.slice", "/a:b", "/a\0"] {
            assert!(naming.pod(bad, "pod1").is_err(), "{bad}");
        }
    }

    #[test]
    fn systemd() {
        let naming = Naming::new(Driver::Systemd, "/berth");
        let id = "0123456789abcdef".repeat(4);
        let (slice, ours) = naming.pod("/kubepods.slice/kubepods-burstable-podX_y.slice", "pod1").unwrap();
        assert_eq!((slice.as_str(), ours), ("kubepods-burstable-podX_y.slice", false));
        assert_eq!(naming.container(&slice, &id), format!("kubepods-burstable-podX_y.slice:cri-berth:{id}"));
        let path = naming.container_path(&slice, &id).unwrap();
        let want = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX_y.slice";
        assert_eq!(path, PathBuf::from(format!("{want}/cri-berth-{id}.scope")));
        // As the kubelet reads it.
        let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".scope");
        assert_eq!(name.rsplit('-').next().unwrap(), id);
        assert_eq!(naming.pod("", "pod1").unwrap(), ("berth.slice".to_owned(), false));
        for bad in ["/kubepods/podX", "kubepods--x.slice", ".slice", "-x.slice"] {
            assert!(naming.pod(bad, "pod1").is_err(), "{bad}");
        }
        assert_eq!(slice_path("-.slice").unwrap(), PathBuf::new());
    }
}
