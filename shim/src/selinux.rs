//! SELinux labels of what libcontainer makes, which knows nothing of them: of processes and of mounts.
//!
//! A process is labelled by its next exec (`attr/exec` in /proc), as whom it runs by then: the kernel takes the word only from the
//! process itself, with the credentials that it opened the file with.
//!
//! | mounted | labelled |
//! |---|---|
//! | root, images, tmpfs, devpts, other file systems of their own | by the option `context` |
//! | masked directories | the same: here they become such mounts |
//! | mqueue | by an attribute of its root: the file system is that of an IPC namespace. The host's is left alone |
//! | proc, sysfs, cgroup | no: the file system is shared with others, and the policy says what it is |
//! | bind mounts | no: files have labels of their own |

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, MountBuilder, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, XattrFlags, openat, openat2};
use rustix::mount::{MountFlags, mount};

use crate::stage::Stage;
use crate::status::{Code, Failure};
use crate::sys;

/// The kernel's number of procfs (`linux/magic.h`).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
/// File systems that take no label by option. An overlay, for an image, was mounted with it before.
const WITHOUT: [&str; 7] = ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "overlay", "bind"];

/// Whether this kernel has SELinux on.
fn is_on() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Refuses labels where nothing heeds them: who asks for one counts on it.
pub(crate) fn check(spec: &Spec) -> Result<(), Failure> {
    let process = spec.process().as_ref().and_then(|process| process.selinux_label().as_deref());
    let mounts = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    match [process, mounts].into_iter().flatten().find(|label| !label.is_empty()) {
        Some(label) if !is_on() => Err(Failure::new(
            Code::FailedPrecondition,
            format!("SELinux label {label:?}: SELinux is not on, on this host; leave it out"),
        )),
        _ => Ok(()),
    }
}

/// Moves the label of mounts from the specification to where each of them takes it: the runtime would give it to all.
pub(crate) fn label_mounts(spec: &mut Spec, root: &Path, stage: &mut Stage) -> Result<(), Failure> {
    let label = spec.linux_mut().as_mut().and_then(|linux| {
        let label = linux.mount_label().clone();
        linux.set_mount_label(None);
        label
    });
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(()) };
    label_queues(spec, &label, stage)
        .map_err(|error| Failure::doing("labelling the container's message queues", &error))?;
    mount_masks(spec, root);
    label_options(spec, &label);
    Ok(())
}

fn label_options(spec: &mut Spec, label: &str) {
    for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| takes_label(mount)) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("context={label}"));
        mount.set_options(Some(options));
    }
}

/// Labels the message queues of the IPC namespace that the container joins, if it has them mounted. A namespace that is not there
/// yet, and the host's, keep the policy's label.
fn label_queues(spec: &Spec, label: &str, stage: &mut Stage) -> io::Result<()> {
    if !spec.mounts().iter().flatten().any(|mount| mount.typ().as_deref() == Some("mqueue")) {
        return Ok(());
    }
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let ipc = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Ipc)
        .and_then(|namespace| namespace.path().as_deref());
    let Some(ipc) = ipc else { return Ok(()) };
    let place = stage.directory()?;
    let (own, theirs) = (File::open("/proc/self/ns/ipc")?, File::open(ipc)?);
    // What is mounted is that of the mounting process' namespace. This one has a single thread.
    sys::setns(theirs.as_raw_fd(), libc::CLONE_NEWIPC)?;
    let mounted = mount("mqueue", &place, "mqueue", MountFlags::empty(), None);
    sys::setns(own.as_raw_fd(), libc::CLONE_NEWIPC)?;
    mounted?;
    let labelled = rustix::fs::setxattr(&place, "security.selinux", label.as_bytes(), XattrFlags::empty());
    stage.drop_layer(&place);
    match labelled {
        // The policy gives the labels of that file system alone.
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Makes mounts of those masked paths that are directories: the runtime would mount them without a label. What they are is seen from
/// here where they are of the kernel's own file systems or of the root; below other mounts it is left to the runtime.
fn mount_masks(spec: &mut Spec, root: &Path) {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let masked = spec.linux().as_ref().and_then(|linux| linux.masked_paths().clone()).unwrap_or_default();
    let (directories, others): (Vec<String>, Vec<String>) =
        masked.into_iter().partition(|path| is_directory(Path::new(path), &mounts, root));
    let options = ["ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    let masks = directories.iter().filter_map(|path| {
        let mount = MountBuilder::default().destination(path).typ("tmpfs").source("tmpfs");
        mount.options(options.clone()).build().ok()
    });
    let all = mounts.into_iter().chain(masks).collect();
    spec.set_mounts(Some(all));
    if let Some(linux) = spec.linux_mut() {
        linux.set_masked_paths(Some(others));
    }
}

/// Whether a path of the container is a directory that can be looked at from outside.
fn is_directory(path: &Path, mounts: &[Mount], root: &Path) -> bool {
    let over = mounts
        .iter()
        .filter(|mount| path.starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().components().count());
    let opened = match over {
        None => {
            let relative = path.strip_prefix("/").unwrap_or(path);
            let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            root.and_then(|root| {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                openat2(root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT)
            })
        }
        Some(mount) => {
            // The same in all of them, as far as it is no process's own.
            let own: Option<PathBuf> = match mount.typ().as_deref() {
                Some("proc") => Some("/proc".into()),
                Some("sysfs") => Some("/sys".into()),
                _ => None,
            };
            let Some(own) = own else { return false };
            let relative = path.strip_prefix(mount.destination()).unwrap_or(path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(CWD, own.join(relative), flags, Mode::empty())
        }
    };
    opened
        .and_then(rustix::fs::fstat)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn takes_label(mount: &Mount) -> bool {
    let bound = |option: &String| option == "bind" || option == "rbind" || option.starts_with("context=");
    mount.typ().as_deref().is_some_and(|kind| !WITHOUT.contains(&kind))
        && !mount.options().iter().flatten().any(bound)
}

/// Gives the label to the calling process' next exec. Runs in the container, as the container's user.
pub(crate) fn label_exec(label: &str) -> Result<(), Failure> {
    if label.is_empty() {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        let mut file =
            attribute("/proc/thread-self/attr/exec").or_else(|_| attribute("/proc/self/attr/exec"))?;
        file.write_all(label.as_bytes())
    };
    write().map_err(|error| {
        let (code, why) = match error.raw_os_error() {
            Some(libc::EINVAL) => (Code::InvalidArgument, "the host's SELinux policy has no such label".to_owned()),
            Some(libc::EACCES | libc::EPERM) => (
                Code::FailedPrecondition,
                "the host's SELinux policy does not let the shim give it: label its program container_runtime_exec_t, or look \
                 for the denial with `ausearch -m avc`"
                    .to_owned(),
            ),
            Some(libc::ENOENT) => {
                (Code::FailedPrecondition, "the container has no /proc to set it through".to_owned())
            }
            _ => (Code::Internal, error.to_string()),
        };
        Failure::new(code, format!("SELinux label {label:?}: {why}"))
    })
}

/// Opens a file of /proc, which is the container's: another file system there could swallow the label.
fn attribute(path: &str) -> io::Result<File> {
    let file = OpenOptions::new().write(true).open(path)?;
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    if u64::try_from(kind).is_ok_and(|kind| kind == PROC_SUPER_MAGIC) {
        return Ok(file);
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn spec() -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
                {"destination": "/dev/shm", "type": "bind", "source": "/shm", "options": ["rbind"]},
                {"destination": "/data", "type": "none", "source": "/data", "options": ["rbind"]},
                {"destination": "/own", "type": "tmpfs", "source": "tmpfs", "options": ["context=a:b:c:s0"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            ],
            "linux": {"mountLabel": LABEL, "maskedPaths": ["/proc/kcore", "/proc/sys", "/etc/deep", "/etc/file", "/data/x"]},
        }))
        .unwrap()
    }

    #[test]
    fn mounts_of_their_own_are_labelled() {
        let mut spec = spec();
        label_options(&mut spec, LABEL);
        let labelled: Vec<_> = spec
            .mounts()
            .iter()
            .flatten()
            .filter(|mount| {
                mount.options().iter().flatten().any(|option| *option == format!("context={LABEL}"))
            })
            .map(|mount| mount.destination().display().to_string())
            .collect();
        assert_eq!(labelled, ["/dev", "/dev/pts"]);
    }

    #[test]
    fn masked_directories_become_mounts() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/deep")).unwrap();
        std::fs::write(root.path().join("etc/file"), "").unwrap();
        let mut spec = spec();
        let before = spec.mounts().as_ref().unwrap().len();
        mount_masks(&mut spec, root.path());
        let added: Vec<_> = spec.mounts().iter().flatten().skip(before).collect();
        let points: Vec<_> = added.iter().map(|mount| mount.destination().display().to_string()).collect();
        assert_eq!(points, ["/proc/sys", "/etc/deep"]);
        assert!(added.iter().all(|mount| takes_label(mount)));
        let left = spec.linux().as_ref().unwrap().masked_paths().clone().unwrap();
        assert_eq!(left, ["/proc/kcore", "/etc/file", "/data/x"]);
    }

    #[test]
    fn a_label_that_nothing_heeds_is_refused() {
        let refused = check(&spec());
        assert_eq!(refused.is_err(), !is_on());
        let mut without = spec();
        without.linux_mut().as_mut().unwrap().set_mount_label(None);
        assert!(check(&without).is_ok());
        // The kernel refuses a label that it has no policy for.
        assert!(label_exec("no:such:label").is_err());
        assert!(label_exec("").is_ok());
    }
}
