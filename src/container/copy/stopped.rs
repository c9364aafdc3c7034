//! The files of a container that has ended: its overlay and what was bound into it, mounted again where only the calling thread
//! sees it. The mounts end with the thread.
//!
//! What the container asked to have bound is named by a path that had no symbolic link in it when the container was made. Who may
//! write beside it can put a link there since, to where he may not read himself: such a path is refused.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    open_tree,
};

use super::Error;
use crate::container::ContainerSnapshot;
use crate::container::spec::destination;

/// Largest specification that is read.
const SPEC_LIMIT: u64 = 16 << 20;

/// Mounts it and opens its root. Blocking; the calling thread is in a mount namespace of its own afterwards.
pub(super) fn mount(container: &ContainerSnapshot, lower: &[PathBuf]) -> Result<OwnedFd, Error> {
    let unreachable = |what: &str, error: Errno| Error::Unreachable {
        id: container.id.clone(),
        reason: format!("{what}: {}", std::io::Error::from(error)),
    };
    if lower.is_empty() {
        let reason = "the image that it was made of was removed".to_owned();
        return Err(Error::Unreachable { id: container.id.clone(), reason });
    }
    // Read before anything lies over it.
    let binds = binds(container);
    let system = |what| move |error: Errno| Error::System { what, source: error.into() };
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|error| Error::System { what: "taking a mount namespace", source: error.into() })?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(system("making mounts private"))?;
    let target = &container.bundle;
    let work = container.upper.with_file_name("work");
    overlay(lower, &container.upper, &work, target)
        .map_err(|error| unreachable("mounting its layers", error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(target, flags, Mode::empty())
        .map_err(|error| unreachable("opening its root", error))?;
    for bind in binds {
        bind.apply(&root).map_err(|error| {
            let (source, destination) = (bind.source.display(), bind.destination.display());
            if error == Errno::LOOP && bind.asked {
                let reason = format!(
                    "{source}, which it had at {destination}, has become a symbolic link or lies behind one: where that leads is \
                     not what the container had"
                );
                return Error::Unreachable { id: container.id.clone(), reason };
            }
            unreachable(&format!("mounting {source} on {destination}"), error)
        })?;
    }
    Ok(root)
}

fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for layer in lower {
        match fsconfig_set_string(context, "lowerdir+", text(layer)) {
            // Linux 6.7 takes layers one by one.
            Err(Errno::INVAL) => return joined(lower, upper, work, target),
            other => other?,
        }
    }
    fsconfig_set_string(context, "upperdir", text(upper))?;
    fsconfig_set_string(context, "workdir", text(work))?;
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn joined(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Errno> {
    let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("overlay", target, "overlay", flags, Some(options.as_c_str()))
}

/// Something of the host that the container had mounted.
#[derive(Debug)]
struct Bind {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
    /// The container's configuration names it: its links were followed then.
    asked: bool,
}

impl Bind {
    /// Mounts it. What is no longer there on either side is left out.
    fn apply(&self, root: &OwnedFd) -> Result<(), Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let target = match rustix::fs::openat2(root, &self.destination, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            target => target?,
        };
        let resolve = match self.asked {
            true => ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            false => ResolveFlags::empty(),
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let source = match rustix::fs::openat2(CWD, &self.source, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            source => source?,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&source, "", flags)?;
        if self.read_only {
            crate::sys::make_read_only(tree.as_fd())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        match move_mount(tree.as_fd(), "", target.as_fd(), "", flags) {
            // A directory where a file was, or the other way round.
            Err(Errno::NOTDIR | Errno::ISDIR) => Ok(()),
            other => other,
        }
    }
}

/// What the container's specification binds: volumes of all kinds, and the files of the pod. Without one there is nothing.
fn binds(container: &ContainerSnapshot) -> Vec<Bind> {
    let path = container.bundle.join("config.json");
    let small = std::fs::metadata(&path).is_ok_and(|file| file.len() <= SPEC_LIMIT);
    let spec = small.then(|| Spec::load(&path).ok()).flatten();
    let mounts = spec.as_ref().and_then(|spec| spec.mounts().as_ref()).cloned().unwrap_or_default();
    let asked: Vec<PathBuf> = (container.config.mounts.iter())
        .filter(|mount| !mount.host_path.is_empty())
        .filter_map(|mount| destination(&mount.container_path).ok())
        .collect();
    let bound = mounts.iter().filter(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind")
    });
    bound
        .filter_map(|mount| {
            let options = mount.options().as_deref().unwrap_or_default();
            Some(Bind {
                source: mount.source().clone()?,
                destination: mount.destination().clone(),
                read_only: options.iter().any(|option| option == "ro" || option == "rro"),
                asked: asked.contains(mount.destination()),
            })
        })
        .collect()
}
