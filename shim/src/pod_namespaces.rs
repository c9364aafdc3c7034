//! The namespaces of a pod that has a user namespace: that one first, and in it the others, so that they belong to it and its
//! root may configure them.
//!
//! `berth-shim pod-namespaces` pins each by a bind mount and ends; no process stays behind. The caller, who has many threads and
//! so can't enter a user namespace, configures the others from outside.

use std::fs;
use std::path::Path;

use crate::userns::{Holder, Maps};

/// Runs the subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let needed = |name: &str| {
        crate::option(arguments, name)?.ok_or_else(|| format!("pod-namespaces: {name} is missing"))
    };
    let maps = Maps::parse(&needed("--uid-map")?, &needed("--gid-map")?)?;
    let directory = needed("--directory")?;
    let kinds = needed("--kinds")?;
    let kinds: Vec<&str> = kinds.split(',').filter(|kind| !kind.is_empty()).collect();
    let mut flags = 0;
    for kind in &kinds {
        flags |= match *kind {
            "net" => libc::CLONE_NEWNET,
            "ipc" => libc::CLONE_NEWIPC,
            "uts" => libc::CLONE_NEWUTS,
            other => return Err(format!("pod-namespaces: no namespace of kind {other:?} to make")),
        };
    }
    let holder = Holder::new(&maps, flags)
        .map_err(|error| format!("pod-namespaces: making a user namespace: {error}"))?;
    for kind in std::iter::once("user").chain(kinds) {
        let path = Path::new(&directory).join(kind);
        pin(&holder.namespace(kind), &path)
            .map_err(|error| format!("pod-namespaces: pinning a namespace at {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Keeps the namespace seen at `namespace` alive, and reachable at `path`.
pub(crate) fn pin(namespace: &str, path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).open(path)?;
    rustix::mount::mount_bind(namespace, path)?;
    Ok(())
}
