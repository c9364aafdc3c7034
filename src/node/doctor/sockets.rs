//! Sockets of other runtimes.

use std::os::unix::net::UnixStream;

use super::{Finding, HostRoot, Setup};

const CHECK: &str = "other runtimes";
/// By name, where they listen.
const KNOWN: &[(&str, &str)] = &[
    ("containerd", "/run/containerd/containerd.sock"),
    ("CRI-O", "/run/crio/crio.sock"),
    ("cri-dockerd", "/run/cri-dockerd.sock"),
    ("k3s", "/run/k3s/containerd/containerd.sock"),
    ("Docker", "/run/docker.sock"),
];

/// Two runtimes beside each other are fine, as long as people know which one they talk to.
pub(super) fn others(root: &HostRoot, setup: &Setup) -> Finding {
    let at = |path: &str| root.path().join(path.trim_start_matches('/'));
    let listening = |path: &str| UnixStream::connect(at(path)).is_ok();
    let ours = setup.address.display().to_string();
    let there: Vec<&(&str, &str)> =
        KNOWN.iter().filter(|(_, path)| *path != ours && at(path).exists()).collect();
    let dead: Vec<String> = there
        .iter()
        .filter(|(_, path)| !listening(path))
        .map(|(name, path)| format!("{name} ({path})"))
        .collect();
    if !dead.is_empty() {
        let advice = "nobody listens there any more: remove the socket, or start that runtime; crictl may try it first";
        return Finding::warning(CHECK, dead.join(", "), advice);
    }
    let names: Vec<&str> = there.iter().map(|(name, _)| *name).collect();
    match names.as_slice() {
        [] => Finding::ok(CHECK, "none"),
        names => Finding::ok(CHECK, format!("{}: each sees its own pods only", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::check::Level;
    use super::*;

    #[test]
    fn sockets_are_tried() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::open(dir.path()).unwrap();
        let setup = Setup {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            address: "/run/berth/berth.sock".into(),
            builtin_network: true,
            cgroup_driver: None,
        };
        assert_eq!(others(&root, &setup).found, "none");
        std::fs::create_dir_all(dir.path().join("run/crio")).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("run/crio/crio.sock")).unwrap();
        assert!(others(&root, &setup).found.starts_with("CRI-O"));
        drop(listener);
        assert_eq!(others(&root, &setup).level, Level::Warning);
    }
}
