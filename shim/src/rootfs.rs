//! Mounts the root file system of a Create request, in the mount namespace of the calling process.
//!
//! Only runs in a forked child, in a mount namespace of its own. The mount that holds the target becomes a slave there, so that
//! what is mounted on it does not reach the host; all other mounts keep their propagation, because volumes may ask for it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount,
};

use crate::stage::Stage;
use crate::status::Failure;
use crate::userns::Maps;

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
pub(crate) fn mount_all(mounts: &[RootfsMount], target: &Path, stage: &mut Stage) -> Result<(), Failure> {
    if mounts.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(target)
        .map_err(|error| Failure::doing(&format!("making {}", target.display()), &error))?;
    for one in mounts {
        let what = || format!("mounting {} on {}", one.kind, target.display());
        match one.kind.as_str() {
            "overlay" => overlay(&one.options, target, stage),
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

/// Mounts an overlay. Beside the options of mount(2) there are those of containerd: `uidmap=` and `gidmap=` map the owners of the
/// lower layers (inside:outside:count); and one of ours: with `idmap-upper` those of the upper one are mapped as well, so that
/// what the container writes lies on disk with the ids that the container sees.
pub(crate) fn overlay(options: &[String], target: &Path, stage: &mut Stage) -> io::Result<()> {
    let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    let mut plain: Vec<String> = Vec::new();
    for option in options {
        let key = option.split_once('=').map_or(option.as_str(), |(key, _)| key);
        match (key, plain.last_mut()) {
            ("uidmap" | "gidmap" | "idmap-upper", _) => {}
            // The joined form is what all kernels know.
            ("lowerdir+", Some(last)) if last.starts_with("lowerdir=") => {
                last.push(':');
                last.push_str(option.trim_start_matches("lowerdir+="));
            }
            ("lowerdir+", _) => plain.push(option.replacen("lowerdir+", "lowerdir", 1)),
            _ => plain.push(option.clone()),
        }
    }
    let (Some(uids), Some(gids)) = (value("uidmap"), value("gidmap")) else {
        return unmapped_overlay(&plain, target);
    };
    let maps = Maps::parse(uids, gids).map_err(io::Error::other)?;
    let upper = options.iter().any(|option| option == "idmap-upper");
    let mut staged = Vec::new();
    let result = mapped_overlay(&plain, target, &maps, upper, stage, &mut staged);
    for path in &staged {
        stage.drop_layer(path);
    }
    result
}

fn mapped_overlay(
    options: &[String],
    target: &Path,
    maps: &Maps,
    upper: bool,
    stage: &mut Stage,
    staged: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let mut list: Vec<String> = Vec::new();
    // The upper and the working directory must be on one mount.
    let mut writable: Option<(PathBuf, PathBuf)> = None;
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                let mut lower: Vec<String> = Vec::new();
                for layer in layers.split(':') {
                    let path = stage.layer(Path::new(layer), maps)?;
                    lower.push(path.display().to_string());
                    staged.push(path);
                }
                list.push(format!("lowerdir={}", lower.join(":")));
            }
            Some((key @ ("upperdir" | "workdir"), directory)) if upper => {
                let directory = Path::new(directory);
                let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
                    return Err(io::Error::other(format!("{option}: not a directory to map")));
                };
                let path = match &writable {
                    Some((known, path)) if known == parent => path.clone(),
                    Some(_) => return Err(io::Error::other("upperdir and workdir must lie side by side")),
                    None => {
                        let path = stage.layer(parent, maps)?;
                        staged.push(path.clone());
                        writable = Some((parent.to_owned(), path.clone()));
                        path
                    }
                };
                list.push(format!("{key}={}", path.join(name).display()));
            }
            _ => list.push(option.clone()),
        }
    }
    let mapped = if upper { maps.root() } else { None };
    let Some((uid, gid)) = mapped else { return unmapped_overlay(&list, target) };
    // The kernel makes the overlay's own files as whom it was mounted by: there must be an id for him on the mapped layer.
    let capabilities = rustix::thread::capabilities(None)?;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // The change took those that concern files.
    let result = rustix::thread::set_capabilities(None, capabilities)
        .map_err(io::Error::from)
        .and_then(|()| unmapped_overlay(&list, target));
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    rustix::thread::set_capabilities(None, capabilities)?;
    result
}

/// Overlay through fsopen: each layer is given by itself, so their number is not bounded by a page of options.
fn unmapped_overlay(options: &[String], target: &Path) -> io::Result<()> {
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
            // Quotes are for a list of options, where a label's commas would end it.
            Some((key @ "context", value)) => set(key, value.trim_matches('"'))?,
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
