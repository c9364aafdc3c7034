//! Whether this kernel and these file systems can do what pods with user namespaces need, found out by doing it in a mount
//! namespace of its own.
//!
//! `berth-shim probe-userns --root DIR --state DIR` ends with 0, or says on stderr what is missing. It leaves nothing behind.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::idmap::{Namespaces, clone_tree};
use crate::rootfs;
use crate::stage::Stage;
use crate::sys;
use crate::userns::{Holder, Maps, OfContainer};

/// Runs the subcommand.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let needed = |name: &str| {
        crate::option(arguments, name)?.ok_or_else(|| format!("probe-userns: {name} is missing"))
    };
    let (root, state) = (needed("--root")?, needed("--state")?);
    let (root, state) = (Path::new(&root), Path::new(&state));
    let maps = Maps::parse("0:65536:65536", "0:65536:65536")?;
    Holder::new(&maps, libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOSPC) => {
                "user namespaces are at the limit of /proc/sys/user/max_user_namespaces".to_owned()
            }
            Some(libc::EINVAL) => "the kernel is built without user namespaces (CONFIG_USER_NS)".to_owned(),
            _ => format!("making a user namespace: {error}"),
        }
    })?;
    let private = || -> io::Result<()> {
        sys::unshare(libc::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(())
    };
    private().map_err(|error| format!("taking a mount namespace: {error}"))?;
    let stage = || Stage::new(state, &OfContainer::default()).map_err(|error| error.to_string());
    // Under the directory of the stage, which is a mount of this namespace, nothing lies on disk.
    let covered =
        |what: &'static str| move |error: io::Error| format!("{what} on {}: {error}", state.display());
    clone_tree(root, false)
        .and_then(|tree| Namespaces::default().apply(&tree, &maps, false))
        .map_err(|error| format!("mapping the owners of {}: {error}", root.display()))?;
    mount("probe", state, "tmpfs", MountFlags::empty(), c"mode=755,size=1m")
        .map_err(|error| covered("mounting a tmpfs")(error.into()))?;
    for name in ["lower", "writable", "writable/upper", "writable/work", "merged"] {
        fs::create_dir(state.join(name)).map_err(covered("making a directory"))?;
    }
    let at = |name: &str| state.join(name).display().to_string();
    stage()?
        .layer(&state.join("lower"), &maps)
        .map_err(|error| format!("owners on a tmpfs can't be mapped, which needs Linux 6.3: {error}"))?;
    let options = [
        format!("lowerdir={}", at("lower")),
        format!("upperdir={}", at("writable/upper")),
        format!("workdir={}", at("writable/work")),
        "uidmap=0:65536:65536".to_owned(),
        "gidmap=0:65536:65536".to_owned(),
        "idmap-upper".to_owned(),
    ];
    rootfs::overlay(&options, &state.join("merged"), &mut stage()?).map_err(|error| {
        format!("an overlay of layers with mapped owners can't be mounted, which needs Linux 5.19: {error}")
    })
}
