//! Mounts the root file system of a Create request, in the mount namespace of the calling process.
//!
//! Only runs in a forked child, in a mount namespace of its own. The mount that holds the target becomes a slave there, so that
//! what is mounted on it does not reach the host; all other mounts keep their propagation, because volumes may ask for it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount,
};

use crate::status::Failure;

/// One mount of a Create request.
#[derive(Clone, Debug)]
pub(crate) struct RootfsMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// Takes a mount namespace of the process' own in which mounts below `bundle` stay.
pub(crate) fn private_namespace(bundle: &Path) -> Result<(), Failure> {
    crate::sys::unshare(libc::CLONE_NEWNS)
        .map_err(|error| Failure::doing("taking a mount namespace", &error))?;
    let holder = holding_mount(bundle).map_err(|error| Failure::doing("reading the mount table", &error))?;
    mount_change(&holder, MountPropagationFlags::DOWNSTREAM)
        .map_err(|error| Failure::doing(&format!("making {} a slave mount", holder.display()), &error))
}

/// The mount point that `path` is on.
fn holding_mount(path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.components().count())
        .unwrap_or_else(|| PathBuf::from("/")))
}

/// The kernel writes blanks, tabs, newlines and backslashes in the mount table as octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Mounts them on `target`, one over the other.
pub(crate) fn mount_all(mounts: &[RootfsMount], target: &Path) -> Result<(), Failure> {
    if mounts.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(target)
        .map_err(|error| Failure::doing(&format!("making {}", target.display()), &error))?;
    for one in mounts {
        let what = || format!("mounting {} on {}", one.kind, target.display());
        match one.kind.as_str() {
            "overlay" => overlay(&one.options, target),
            "bind" | "rbind" => bind(one, target),
            _ => plain(one, target),
        }
        .map_err(|error| Failure::doing(&what(), &error))?;
    }
    Ok(())
}

fn errno(error: rustix::io::Errno) -> io::Error {
    error.into()
}

fn detail(what: &str, error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Overlay through fsopen: each layer is given by itself, so their number is not bounded by a page of options.
fn overlay(options: &[String], target: &Path) -> io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(errno)?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(context.as_fd(), key, value)
            .map_err(|error| detail(&format!("{key}={value}"), error))
    };
    let mut attributes = MountAttrFlags::empty();
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    match set("lowerdir+", layer) {
                        // A page of options is full, on a kernel as below.
                        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                            return overlay_before_6_7(options, target);
                        }
                        result => result?,
                    }
                }
            }
            Some((key, value)) => set(key, value)?,
            None => match option.as_str() {
                "ro" => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
                "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                "noexec" => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
                "rw" | "defaults" => {}
                flag => fsconfig_set_flag(context.as_fd(), flag).map_err(|error| detail(flag, error))?,
            },
        }
    }
    match fsconfig_create(context.as_fd()) {
        // Kernels before 6.7 know the joined form only, and look at options no earlier than here.
        Err(rustix::io::Errno::INVAL) => return overlay_before_6_7(options, target),
        result => result.map_err(errno)?,
    }
    let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(errno)?;
    move_mount(mounted.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(errno)
}

/// The old call takes one page of options: names relative to what the layers have in common keep it short.
fn overlay_before_6_7(options: &[String], target: &Path) -> io::Result<()> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap_or_default();
    let layers: Vec<&str> = lower.split(':').collect();
    let mut common = PathBuf::from(layers.first().copied().unwrap_or("/"));
    while !layers.iter().all(|layer| Path::new(layer).starts_with(&common) && Path::new(layer) != common) {
        if !common.pop() {
            common = PathBuf::from("/");
            break;
        }
    }
    let relative: Vec<String> = layers
        .iter()
        .map(|layer| Path::new(layer).strip_prefix(&common).unwrap_or(Path::new(layer)).display().to_string())
        .collect();
    let (flags, rest) = flags_of(options);
    let mut data: Vec<String> =
        rest.iter().filter(|option| !option.starts_with("lowerdir=")).map(|o| (*o).to_owned()).collect();
    data.insert(0, format!("lowerdir={}", relative.join(":")));
    let data = std::ffi::CString::new(data.join(","))?;
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&common)?;
    let result = mount("overlay", target, "overlay", flags, data.as_c_str()).map_err(errno);
    std::env::set_current_dir(before)?;
    result
}

fn bind(one: &RootfsMount, target: &Path) -> io::Result<()> {
    let recursive = one.kind == "rbind" || one.options.iter().any(|option| option == "rbind");
    if recursive {
        rustix::mount::mount_bind_recursive(one.source.as_str(), target).map_err(errno)?;
    } else {
        rustix::mount::mount_bind(one.source.as_str(), target).map_err(errno)?;
    }
    let (flags, _) = flags_of(&one.options);
    if flags.is_empty() {
        return Ok(());
    }
    rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"").map_err(errno)
}

fn plain(one: &RootfsMount, target: &Path) -> io::Result<()> {
    let (flags, data) = flags_of(&one.options);
    let data = std::ffi::CString::new(data.join(","))?;
    mount(one.source.as_str(), target, one.kind.as_str(), flags, data.as_c_str()).map_err(errno)
}

fn flags_of(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "bind" | "rbind" | "rw" | "defaults" => {}
            other => data.push(other),
        }
    }
    (flags, data)
}
