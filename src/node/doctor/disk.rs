//! Space and inodes where the daemon keeps its things.

use super::{Error, Finding, HostRoot, Setup};
use crate::node::HostPath;

/// Free parts of a hundred below which the kubelet evicts pods (its defaults `imagefs.available`, `nodefs.inodesFree`).
const SPACE: u64 = 15;
const INODES: u64 = 5;
/// Bytes and inodes below which nothing can be made any more.
const SPACE_FLOOR: u64 = 256 << 20;
const STATE_FLOOR: u64 = 16 << 20;
const INODES_FLOOR: u64 = 1000;

pub(super) fn all(root: &HostRoot, setup: &Setup) -> Result<Vec<Finding>, Error> {
    let path = |path: &std::path::Path| HostPath::try_from(path.display().to_string());
    let (kept, state) = (path(&setup.root)?, path(&setup.state)?);
    Ok(vec![
        space("disk", kept.as_str(), root.space(&kept)?, SPACE_FLOOR),
        inodes("inodes", kept.as_str(), root.inodes(&kept)?),
        space("state disk", state.as_str(), root.space(&state)?, STATE_FLOOR),
        inodes("state inodes", state.as_str(), root.inodes(&state)?),
    ])
}

fn space(check: &'static str, at: &str, (free, total): (u64, u64), floor: u64) -> Finding {
    let percent = part(free, total);
    let found = format!("{} MiB ({percent} %) free for {at}", free >> 20);
    if free < floor {
        let advice = "pods can't be started: make room, `berth system df` shows what takes it, `berth system prune` frees some";
        Finding::wrong(check, found, advice)
    } else if percent < SPACE {
        let advice =
            "the kubelet soon removes images and evicts pods: `berth system df`, `berth system prune`";
        Finding::warning(check, found, advice)
    } else {
        Finding::ok(check, found)
    }
}

fn inodes(check: &'static str, at: &str, (free, total): (u64, u64)) -> Finding {
    if total == 0 {
        return Finding::ok(check, format!("the file system of {at} has no bound"));
    }
    let percent = part(free, total);
    let found = format!("{free} ({percent} %) free for {at}");
    if free < INODES_FLOOR {
        let advice =
            "no file can be made any more: remove images (`berth system prune`), or what else has many files";
        Finding::wrong(check, found, advice)
    } else if percent < INODES {
        Finding::warning(check, found, "the kubelet soon evicts pods: `berth system prune`")
    } else {
        Finding::ok(check, found)
    }
}

/// In parts of a hundred.
fn part(free: u64, total: u64) -> u64 {
    free.saturating_mul(100).checked_div(total).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::super::check::Level;
    use super::*;

    #[test]
    fn little_space_is_a_warning_and_none_is_wrong() {
        let level = |free: u64, total: u64| space("disk", "/x", (free, total), SPACE_FLOOR).level;
        assert_eq!(level(50 << 30, 100 << 30), Level::Ok);
        assert_eq!(level(10 << 30, 100 << 30), Level::Warning);
        assert_eq!(level(100 << 20, 1 << 30), Level::Wrong);
        assert_eq!(inodes("inodes", "/x", (0, 0)).level, Level::Ok);
        assert_eq!(inodes("inodes", "/x", (5_000, 1_000_000)).level, Level::Warning);
        assert_eq!(inodes("inodes", "/x", (10, 1_000_000)).level, Level::Wrong);
    }
}
