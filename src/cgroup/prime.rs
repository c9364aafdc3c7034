//! Makes the kernel ready for a process to be moved between cgroups.
//!
//! On cgroup v1 the first write to a `cgroup.procs` in a while waits for an RCU grace period, some 8 ms; those that follow
//! soon do not. Whoever knows that a container is about to be created has the wait begin beside the work that comes first.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Mode, ROOT};

/// Begins the wait, without waiting for it. Nothing is moved: the calling process is written to where it is.
pub(crate) fn prime(mode: Mode) {
    static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
    if mode == Mode::Unified {
        return;
    }
    tokio::task::spawn_blocking(|| {
        if let Some(procs) = OWN.get_or_init(own) {
            // Only time is lost where it fails.
            let _ = fs::write(procs, "0");
        }
    });
}

/// The file with this process in it, in a hierarchy that has one controller.
fn own() -> Option<PathBuf> {
    let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
    memberships.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controller, path) = (parts.next()?, parts.next()?);
        let procs = Path::new(ROOT).join(controller).join(path.trim_start_matches('/')).join("cgroup.procs");
        let plain = !controller.is_empty() && !controller.contains(['=', ',']);
        (plain && procs.exists()).then_some(procs)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_own_cgroup_is_where_this_process_is() {
        if super::Mode::detect() == super::Mode::Unified {
            return;
        }
        let Some(procs) = super::own() else { return };
        let own = std::process::id().to_string();
        assert!(std::fs::read_to_string(procs).is_ok_and(|list| list.lines().any(|pid| pid == own)));
    }
}
