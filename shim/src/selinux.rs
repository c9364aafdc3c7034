//! SELinux labels of what libcontainer makes, which knows nothing of them: of processes and of mounts.
//!
//! A process is labelled by its next exec (`attr/exec` in /proc), as whom it runs by then: the kernel takes the word only from the
//! process itself, with the credentials that it opened the file with.
//!
//! | mounted | labelled |
//! |---|---|
//! | root, images, tmpfs, devpts, other file systems of their own | by the option `context` |
//! | proc, sysfs, cgroup, mqueue | no: the file system is shared with others, and the policy says what it is |
//! | bind mounts | no: files have labels of their own |

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use oci_spec::runtime::{Mount, Spec};

use crate::status::{Code, Failure};

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

/// Moves the label of mounts from the specification to the options of those that take one: the runtime would give it to all.
pub(crate) fn label_mounts(spec: &mut Spec) {
    let label = spec.linux_mut().as_mut().and_then(|linux| {
        let label = linux.mount_label().clone();
        linux.set_mount_label(None);
        label
    });
    let Some(label) = label.filter(|label| !label.is_empty()) else { return };
    for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| takes_label(mount)) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("context={label}"));
        mount.set_options(Some(options));
    }
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
            "linux": {"mountLabel": LABEL},
        }))
        .unwrap()
    }

    #[test]
    fn mounts_of_their_own_are_labelled() {
        let mut spec = spec();
        label_mounts(&mut spec);
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
        assert_eq!(spec.linux().as_ref().unwrap().mount_label(), &None);
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
