//! What lies about and belongs to no pod: looked for as start-up does it, and left where it is.
//!
//! Something younger than a minute may be on its way to a record, or be just being removed, and is passed over.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::pods::Pods;
use super::recover::unowned;
use crate::cgroup;

/// Age from which a thing without an owner is one.
const AGE: Duration = Duration::from_secs(60);
/// Between the two looks that both must find a thing.
const SETTLE: Duration = Duration::from_millis(500);
/// Most of them that are told.
const MOST: usize = 1000;
/// Characters of an id (`crate::id`).
const ID: usize = 64;

/// Something that nobody owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// `directory`, `mount`, `cgroup`, `process`.
    pub kind: &'static str,
    /// Its path, or what it is called.
    pub what: String,
}

/// Shims that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shims {
    /// All of this daemon's.
    pub running: usize,
    /// Those of them that run another program than the one that is started now: of an earlier version.
    pub former: usize,
}

impl Pods {
    /// Looks for what belongs to nobody. Reads directories, `/proc` and cgroups: call it where blocking is fine.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let first = self.unowned();
        if first.is_empty() {
            return Vec::new();
        }
        // What was just on its way out is gone by then.
        std::thread::sleep(SETTLE);
        let second = self.unowned();
        first.into_iter().filter(|one| second.contains(one)).take(MOST).collect()
    }

    fn unowned(&self) -> BTreeSet<Leftover> {
        let tools = &self.shared.tools;
        let state = &tools.state;
        let mut found = BTreeSet::new();
        let places = [state.join("containers"), tools.root.join("containers"), state.join("pods")];
        // Owners are asked for after each look: what became owned in between is no leftover.
        for place in &places {
            let names = unowned(place, &HashSet::new());
            let owned = self.owned();
            let old = names.into_iter().filter(|name| !owned.contains(name)).map(|name| place.join(name));
            let old = old.filter(|path| is_old(path));
            found.extend(old.map(|path| leftover("directory", path.display())));
        }
        // A name that is no text is nobody's here.
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = String::from_utf8_lossy(&mounts);
        let owned = self.owned();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let owner = places.iter().find_map(|place| owner(Path::new(target), place));
            if owner.is_some_and(|(path, id)| !owned.contains(&id) && (!path.exists() || is_old(&path))) {
                found.insert(leftover("mount", target));
            }
        }
        if let Some(root) = tools.naming.own_root() {
            let names = cgroup::children(tools.host.cgroup, root);
            let owned = self.owned();
            for name in names.into_iter().filter(|name| is_id(name) && !owned.contains(name)) {
                let path = Path::new("/sys/fs/cgroup").join(root.trim_matches('/')).join(&name);
                // On v1 it is below each hierarchy's own directory, and has no age here.
                if !path.exists() || is_old(&path) {
                    found.insert(leftover("cgroup", format_args!("{}/{name}", root.trim_end_matches('/'))));
                }
            }
        }
        for (pid, id) in shims(state) {
            let bundle = state.join("containers").join(&id);
            if !self.owned().contains(&id) && (!bundle.exists() || is_old(&bundle)) {
                found.insert(leftover("process", format_args!("{pid} (the shim of {id})")));
            }
        }
        found
    }

    /// This daemon's shims.
    pub fn shims(&self) -> Shims {
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let program = identity(self.shared.tools.launcher.program().path());
        let mut counted = Shims::default();
        for (pid, _) in shims(&self.shared.tools.state) {
            counted.running += 1;
            let runs = identity(Path::new(&format!("/proc/{pid}/exe")));
            // The same file by way of another mount has the same number.
            counted.former += usize::from(runs.is_some() && runs != program);
        }
        counted
    }

    /// The program that shims are started from.
    pub fn shim_program(&self) -> PathBuf {
        self.shared.tools.launcher.program().path().to_owned()
    }

    /// Ids of all pods and containers, those being made among them.
    fn owned(&self) -> HashSet<String> {
        let mut owned: HashSet<String> = self.shared.pods.read().keys().cloned().collect();
        owned.extend(self.shared.runs.lock().ids().map(str::to_owned));
        owned.extend(self.shared.containers.read().keys().cloned());
        owned
    }
}

fn leftover(kind: &'static str, what: impl ToString) -> Leftover {
    Leftover { kind, what: what.to_string() }
}

fn is_id(name: &str) -> bool {
    name.len() == ID && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_old(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    changed.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > AGE))
}

/// The directory below `place` that `path` is in, and its name.
fn owner(path: &Path, place: &Path) -> Option<(PathBuf, String)> {
    let id = path.strip_prefix(place).ok()?.components().next()?.as_os_str().to_str()?.to_owned();
    Some((place.join(&id), id))
}

/// Shims of bundles below `state`: process and container.
fn shims(state: &Path) -> Vec<(u32, String)> {
    let bundles = state.join("containers");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
        // As `shim::Launcher` calls it; what a shim forks goes on under the same command line until it executes.
        let option =
            |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
        let (Some(id), Some(bundle)) = (option("--id"), option("--bundle")) else { continue };
        if words.get(1) == Some(&"serve")
            && owner(Path::new(bundle), &bundles).is_some_and(|(_, owner)| owner == **id)
        {
            found.push((pid, (*id).to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_owners() {
        let place = Path::new("/run/berth/containers");
        let (path, id) = owner(Path::new("/run/berth/containers/ab/rootfs"), place).unwrap_or_default();
        assert_eq!((path.as_path(), id.as_str()), (Path::new("/run/berth/containers/ab"), "ab"));
        assert_eq!(owner(Path::new("/run/berth/containers"), place), None);
        assert_eq!(owner(Path::new("/run/berthold/containers/ab"), place), None);
        assert!(is_id(&"0f".repeat(32)) && !is_id("lost+found"));
        let fresh = std::env::temp_dir().join(format!("berth-leftovers-{}", std::process::id()));
        assert!(fs::create_dir(&fresh).is_ok() && !is_old(&fresh) && fs::remove_dir(&fresh).is_ok());
    }
}
