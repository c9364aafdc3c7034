//! What the kernel of this machine can do, for verbose status: looked up once, at start.

use std::path::Path;

use serde_json::{Value, json};

use crate::cgroup::Mode;
use crate::selinux::SeLinux;

/// Controllers that containers' limits need.
const CONTROLLERS: &[&str] =
    &["cpu", "cpuset", "memory", "pids", "io", "blkio", "hugetlb", "devices", "freezer"];

/// Features found, by name. `no_user_namespaces` says why pods can't have them, if so.
pub(super) fn found(no_user_namespaces: Option<&str>, selinux: Option<&SeLinux>) -> Value {
    let mode = Mode::detect();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let version = version(release);
    let filesystem =
        |name: &str| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    let there = |path: &str| Path::new(path).exists();
    let positive = |path: &str| {
        std::fs::read_to_string(path)
            .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|number| number > 0))
    };
    json!({
        "kernel": release,
        "cgroup": match mode {
            Mode::Legacy => "v1",
            Mode::Hybrid => "v1 with an empty v2 beside it",
            Mode::Unified => "v2",
        },
        "cgroupControllers": CONTROLLERS.iter().filter(|name| mode.has_controller(name)).collect::<Vec<_>>(),
        "cgroupKill": mode == Mode::Unified && version >= (5, 14),
        "pressure": there("/proc/pressure/cpu"),
        "overlay": filesystem("overlay"),
        "overlayIdmap": filesystem("overlay") && version >= (5, 19),
        "erofs": filesystem("erofs"),
        "recursiveReadOnly": version >= (5, 12),
        "userNamespaces": there("/proc/self/ns/user") && positive("/proc/sys/user/max_user_namespaces"),
        "podUserNamespaces": no_user_namespaces.is_none(),
        "podUserNamespacesMissing": no_user_namespaces,
        "seccomp": there("/proc/sys/kernel/seccomp/actions_avail"),
        "appArmor": there("/sys/kernel/security/apparmor"),
        "seLinux": there("/sys/fs/selinux/enforce"),
        "seLinuxLabels": selinux.map_or_else(|| "not given".into(), SeLinux::describe),
    })
}

/// Major and minor version of a release such as `6.12.3-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_versions() {
        assert_eq!(version("6.12.3-amd64"), (6, 12));
        assert_eq!(version("5.4"), (5, 4));
        assert_eq!(version("odd"), (0, 0));
        assert!(found(None, None)["kernel"].is_string());
    }
}
