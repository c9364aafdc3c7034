//! Control groups: what the machine has, how ours are named, and what is done to them.
//!
//! The OCI runtime makes a container's cgroup, from the path that [`Naming`] gives it. The kubelet makes the parents of
//! its pods. Berth makes only parents of pods that name none, and finds, reads, changes, empties and removes cgroups by
//! [`Cgroup`], which is one directory on v2 and one per hierarchy on v1.
//!
//! Reading a cgroup that is gone is not an error: between a look and the next a container may end.

mod dir;
mod naming;
mod prime;
mod update;
pub mod usage;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs;

pub use self::dir::{Cgroup, Error, OomCounts};
pub use self::naming::{Driver, DriverError, Naming};
pub(crate) use self::prime::prime;
pub use self::update::update;

const ROOT: &str = "/sys/fs/cgroup";

/// Which cgroup hierarchies the machine has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// v1 only: a hierarchy per controller.
    Legacy,
    /// v1, and a v2 hierarchy without useful controllers beside it.
    Hybrid,
    /// v2 only.
    Unified,
}

impl Mode {
    /// Looks at what is mounted at `/sys/fs/cgroup`.
    pub fn detect() -> Self {
        let root = Path::new(ROOT);
        if is_v2(root) {
            Self::Unified
        } else if is_v2(&root.join("unified")) {
            Self::Hybrid
        } else {
            Self::Legacy
        }
    }

    /// Whether any hierarchy is there at all. No container runs without.
    pub fn is_mounted(self) -> bool {
        !self.hierarchies().is_empty()
    }

    /// Whether a controller can be used.
    pub fn has_controller(self, name: &str) -> bool {
        let root = Path::new(ROOT);
        match self {
            Self::Unified => std::fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|controller| controller == name)),
            Self::Legacy | Self::Hybrid => root.join(name).is_dir(),
        }
    }

    /// The directories in which hierarchies are mounted: the one of v2, or each of v1 and the v2 beside them. They are looked for
    /// once: to resolve each of v1's costs some 70 system calls, and each container asks several times.
    fn hierarchies(self) -> Vec<PathBuf> {
        static V1: OnceLock<Vec<PathBuf>> = OnceLock::new();
        if self == Self::Unified {
            return vec![PathBuf::from(ROOT)];
        }
        if let Some(found) = V1.get() {
            return found.clone();
        }
        let found = Self::mounted_v1();
        // None yet, as on a machine that is just starting: the next call looks again.
        if !found.is_empty() {
            let _ = V1.set(found.clone());
        }
        found
    }

    fn mounted_v1() -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for entry in std::fs::read_dir(ROOT).into_iter().flatten().flatten() {
            // Controllers mounted together (cpu,cpuacct) are reached by several names: links to one directory.
            let Ok(path) = entry.path().canonicalize() else { continue };
            if path.join("cgroup.procs").exists() && seen.insert(path.clone()) {
                found.push(path);
            }
        }
        found.sort();
        found
    }
}

/// Names of the groups right below `parent`, in any hierarchy.
pub fn children(mode: Mode, parent: &str) -> std::collections::BTreeSet<String> {
    let mut names = std::collections::BTreeSet::new();
    for hierarchy in mode.hierarchies() {
        let directory = hierarchy.join(parent.trim_matches('/'));
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.extend(entry.file_name().into_string());
            }
        }
    }
    names
}

fn is_v2(path: &Path) -> bool {
    const CGROUP2: u64 = 0x6367_7270;
    fs::statfs(path).is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t == CGROUP2))
}

#[cfg(test)]
mod tests;
