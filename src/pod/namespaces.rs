//! The namespaces of a pod, kept alive by bind mounts instead of by a process.
//!
//! A thread of its own unshares, configures what the namespaces hold and pins each to a file below the pod's state
//! directory; then it ends, so no other work ever runs in a namespace that is not the daemon's.
//!
//! A user namespace takes a process of its own, as the kernel lets none with threads enter one: the shim's program makes it and
//! the others in it, so that they belong to it, and pins them; the thread then joins those and configures them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::helper;
use crate::container::spec::{IdMaps, Sysctl};
use crate::shim::Program;

/// A namespace could not be made, configured, pinned or let go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step on a file failed.
    #[error("{action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel made no namespaces.
    #[error("unsharing the pod's namespaces")]
    Unshare(#[source] nix::Error),
    /// The process that makes a user namespace failed.
    #[error("making the pod's user namespace: {0}")]
    User(String),
    /// The host name was refused.
    #[error("setting the host name {name:?}")]
    Hostname {
        /// The name.
        name: String,
        /// What the system said.
        source: nix::Error,
    },
    /// A sysctl was refused.
    #[error("setting sysctl {key} to {value:?}")]
    Sysctl {
        /// Its name.
        key: String,
        /// The value asked for.
        value: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that makes namespaces could not be started or ended early.
    #[error("running the thread that makes the pod's namespaces: {0}")]
    Thread(String),
}

impl crate::error::Classify for Error {
    fn kind(&self) -> crate::error::Kind {
        match self {
            // The value came with the request; the kernel knows best what it may be.
            Self::Sysctl { .. } | Self::Hostname { .. } => crate::error::Kind::InvalidArgument,
            _ => crate::error::Kind::Internal,
        }
    }
}

/// What a pod's own namespaces are to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Users and groups of its own, which the other namespaces belong to.
    pub(crate) user: Option<IdMaps>,
    /// A network namespace of its own.
    pub(crate) network: bool,
    /// System V and POSIX message queues of its own.
    pub(crate) ipc: bool,
    /// A host name of its own.
    pub(crate) uts: Option<String>,
    /// Kernel parameters to set inside.
    pub(crate) sysctls: Vec<Sysctl>,
}

/// The directory of pins.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    directory: PathBuf,
}

const USER: &str = "user";
const NETWORK: &str = "net";
const IPC: &str = "ipc";
const UTS: &str = "uts";
const PID: &str = "pid";

impl Namespaces {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Pin of the user namespace, when there is one.
    pub(crate) fn user(&self) -> Option<PathBuf> {
        self.existing(USER)
    }

    /// Pin of the network namespace, when there is one.
    pub(crate) fn network(&self) -> Option<PathBuf> {
        self.existing(NETWORK)
    }

    /// Pin of the IPC namespace, when there is one.
    pub(crate) fn ipc(&self) -> Option<PathBuf> {
        self.existing(IPC)
    }

    /// Pin of the UTS namespace, when there is one.
    pub(crate) fn uts(&self) -> Option<PathBuf> {
        self.existing(UTS)
    }

    /// Where the pin of the shared PID namespace stands or will stand.
    pub(crate) fn pid_path(&self) -> PathBuf {
        self.directory.join(PID)
    }

    /// Pin of the shared PID namespace, when there is one.
    pub(crate) fn pid(&self) -> Option<PathBuf> {
        self.existing(PID)
    }

    fn existing(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.join(name);
        path.exists().then_some(path)
    }

    /// Whether every pin is still a mount of a namespace: after a reboot, or when somebody unmounted them, they are
    /// plain files or missing.
    pub(crate) fn intact(&self, plan: &Plan) -> bool {
        let pinned = |name: &str| is_namespace(&self.directory.join(name));
        (plan.user.is_none() || pinned(USER))
            && (!plan.network || pinned(NETWORK))
            && (!plan.ipc || pinned(IPC))
            && (plan.uts.is_none() || pinned(UTS))
    }

    /// Makes and pins the namespaces of `plan`; `program` is the shim's.
    ///
    /// # Errors
    /// [`Error`] of the step that failed; what was pinned before it stays for [`Namespaces::remove`].
    pub(crate) async fn make(&self, plan: Plan, program: &Program) -> Result<(), Error> {
        let directory = self.directory.clone();
        if let Some(maps) = &plan.user {
            self.make_user(maps, &plan, program).await?;
        }
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("namespaces".into())
            .stack_size(128 << 10)
            .spawn(move || {
                // Nobody listening means the caller was dropped; recovery removes what stands.
                let _ = done.send(make_here(&directory, &plan));
            })
            .map_err(|error| Error::Thread(error.to_string()))?;
        result.await.map_err(|_| Error::Thread("it ended without an answer".to_owned()))?
    }

    async fn make_user(&self, maps: &IdMaps, plan: &Plan, program: &Program) -> Result<(), Error> {
        let directory = self.directory.clone();
        tokio::fs::create_dir_all(&directory).await.map_err(|source| Error::Path {
            action: "making the directory",
            path: directory.clone(),
            source,
        })?;
        let kinds: Vec<_> = plan.kinds().iter().map(|(_, name)| *name).collect();
        let (uids, gids) = maps.texts();
        let mut arguments: Vec<OsString> = vec!["pod-namespaces".into(), "--directory".into()];
        arguments.push(directory.into());
        arguments.extend(
            ["--uid-map", &uids, "--gid-map", &gids, "--kinds", &kinds.join(",")].map(OsString::from),
        );
        helper::run(program, arguments).await.map(|_| ()).map_err(Error::User)
    }

    /// Lets go of every namespace; those not there are fine. The kernel ends them in the background.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for name in [NETWORK, IPC, UTS, PID, USER] {
            if let Err(error) = unpin(&self.directory.join(name)) {
                result = Err(error);
            }
        }
        match fs::remove_dir(&self.directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound && result.is_ok() => {
                Err(Error::Path { action: "removing", path: self.directory.clone(), source })
            }
            _ => result,
        }
    }
}

fn make_here(directory: &Path, plan: &Plan) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(|source| Error::Path {
        action: "making the directory",
        path: directory.to_owned(),
        source,
    })?;
    let kinds = plan.kinds();
    if kinds.is_empty() {
        return Ok(());
    }
    if plan.user.is_some() {
        for (flag, name) in &kinds {
            join(*flag, &directory.join(name))?;
        }
    } else {
        unshare(kinds.iter().map(|(flag, _)| *flag).collect()).map_err(Error::Unshare)?;
    }
    if let Some(name) = &plan.uts {
        nix::unistd::sethostname(name).map_err(|source| Error::Hostname { name: name.clone(), source })?;
    }
    for sysctl in &plan.sysctls {
        let written = match (write_sysctl(sysctl), &plan.user) {
            // Which root may write those of IPC namespaces differs between kernels: ours, or theirs.
            (Err(error), Some(maps)) if error.kind() == io::ErrorKind::PermissionDenied => {
                as_root_of(maps, || write_sysctl(sysctl))
            }
            (written, _) => written,
        };
        written.map_err(|source| Error::Sysctl {
            key: sysctl.name.clone(),
            value: sysctl.value.clone(),
            source,
        })?;
    }
    if plan.user.is_none() {
        for (_, name) in kinds {
            pin(&PathBuf::from(format!("/proc/thread-self/ns/{name}")), &directory.join(name))?;
        }
    }
    Ok(())
}

impl Plan {
    /// What is to be made beside a user namespace.
    fn kinds(&self) -> Vec<(CloneFlags, &'static str)> {
        [
            (self.network, CloneFlags::CLONE_NEWNET, NETWORK),
            (self.ipc, CloneFlags::CLONE_NEWIPC, IPC),
            (self.uts.is_some(), CloneFlags::CLONE_NEWUTS, UTS),
        ]
        .into_iter()
        .filter_map(|(wanted, flag, name)| wanted.then_some((flag, name)))
        .collect()
    }
}

fn join(kind: CloneFlags, pin: &Path) -> Result<(), Error> {
    let failed =
        |source| Error::Path { action: "joining the namespace pinned at", path: pin.to_owned(), source };
    let namespace = File::open(pin).map_err(failed)?;
    setns(namespace, kind).map_err(|errno| failed(errno.into()))
}

/// Writes a kernel parameter. `/proc/sys` shows the parameters of the namespaces of whoever opens the file.
fn write_sysctl(sysctl: &Sysctl) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(sysctl.path())?.write_all(sysctl.value.as_bytes())
}

/// Does it as the user who is root in the namespace. Only the calling thread is somebody else meanwhile.
fn as_root_of<T>(maps: &IdMaps, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some((uid, gid)) = maps.root() else { return Err(io::ErrorKind::PermissionDenied.into()) };
    set_thread_res_gid(Gid::ROOT, Gid::from_raw(gid), Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::from_raw(uid), Uid::ROOT)?;
    let result = work();
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    result
}

fn pin(namespace: &Path, target: &Path) -> Result<(), Error> {
    File::create(target).map_err(|source| Error::Path {
        action: "creating",
        path: target.to_owned(),
        source,
    })?;
    mount(Some(namespace), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
        Error::Path { action: "pinning a namespace to", path: target.to_owned(), source: errno.into() }
    })
}

fn unpin(target: &Path) -> Result<(), Error> {
    // EINVAL: a plain file, nothing is mounted. ENOENT: not even that.
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => {
            return Err(Error::Path { action: "unmounting", path: target.to_owned(), source: errno.into() });
        }
    }
    match fs::remove_file(target) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Path { action: "removing", path: target.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// `NSFS_MAGIC` of linux/magic.h: the filesystem that namespace files live on.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::container::spec::Scope;

    fn sysctl(name: &str, value: &str) -> Sysctl {
        Sysctl { name: name.into(), value: value.into(), scope: Scope::Network }
    }

    #[tokio::test]
    async fn namespaces_outlive_their_thread_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let namespaces = Namespaces::new(root.path().join("ns"));
        let plan = Plan {
            user: None,
            network: true,
            ipc: true,
            uts: Some("pod-host".into()),
            sysctls: vec![sysctl("net.ipv4.ip_unprivileged_port_start", "0")],
        };
        assert!(!namespaces.intact(&plan));
        namespaces.make(plan.clone(), &Program::new("/".into())).await.unwrap();
        assert!(namespaces.intact(&plan));
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        assert_ne!(inode(&namespaces.network().unwrap()), inode(Path::new("/proc/self/ns/net")));
        namespaces.remove().unwrap();
        namespaces.remove().unwrap();
        assert!(!root.path().join("ns").exists());
        assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(root.path().to_str().unwrap()));
    }

    #[tokio::test]
    async fn a_refused_sysctl_names_itself() {
        let root = tempfile::tempdir().unwrap();
        let namespaces = Namespaces::new(root.path().join("ns"));
        let plan = Plan {
            network: true,
            sysctls: vec![sysctl("net.ipv4.no_such_thing", "1")],
            ..Default::default()
        };
        let error = namespaces.make(plan, &Program::new("/".into())).await.unwrap_err();
        assert!(error.to_string().contains("no_such_thing"), "{error}");
        namespaces.remove().unwrap();
    }
}
