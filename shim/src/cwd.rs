//! Makes a container's working directory where the image lacks it, as other runtimes do.
//!
//! It is made before libcontainer runs: afterwards the root may be read-only and the process no longer root. The kernel keeps
//! every look-up inside the file system that holds the directory: the container's root, or the source of a bind mount.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::sys::{self, Fork};
use crate::userns::{self, OfContainer};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes `cwd` as a process in `root`, with `mounts` on it, will see it. What can't be made is found out when the process
/// changes to it.
pub(crate) fn make(
    root: &Path,
    bundle: &Path,
    mounts: &[Mount],
    cwd: &Path,
    container: &OfContainer,
) -> io::Result<()> {
    let holder = mounts
        .iter()
        .filter(|mount| cwd.starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().components().count());
    match holder {
        None => make_as(container, root, cwd),
        Some(mount)
            if mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind") =>
        {
            let (Some(source), Ok(rest)) = (mount.source(), cwd.strip_prefix(mount.destination())) else {
                return Ok(());
            };
            make_as(container, &bundle.join(source), rest)
        }
        // A file system that only the container's own mounts bring: what is in it is not there yet.
        Some(_) => Ok(()),
    }
}

/// As whom the directory is to belong to: root of the container's user namespace, where it joins one.
fn make_as(container: &OfContainer, root: &Path, path: &Path) -> io::Result<()> {
    let root = openat(CWD, root, DIRECTORY, Mode::empty())?;
    let Some(namespace) = &container.joined else { return make_below(&root, path) };
    match sys::fork()? {
        Fork::Child => {
            let result = userns::enter(namespace).and_then(|()| make_below(&root, path));
            sys::exit_now(result.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0))
        }
        Fork::Parent(pid) => match waitpid(Pid::from_raw(pid), None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, error) => Err(io::Error::from_raw_os_error(error)),
            _ => Err(io::Error::other("the process that makes it was killed")),
        },
    }
}

fn make_below(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let open = |path: &Path| openat2(root, path, DIRECTORY, Mode::empty(), ResolveFlags::IN_ROOT);
    if open(&absolute(path)).is_ok() {
        return Ok(());
    }
    let names: Vec<OsString> = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect();
    let mut reached = PathBuf::from("/");
    for name in names {
        let next = reached.join(&name);
        match open(&next) {
            Err(Errno::NOENT) => {
                let parent = open(&reached)?;
                match mkdirat(&parent, Path::new(&name), Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            other => drop(other?),
        }
        reached = next;
    }
    Ok(())
}

/// An empty path would open nothing.
fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;

    use oci_spec::runtime::MountBuilder;

    use super::*;

    #[test]
    fn is_made_inside_the_root_whatever_links_say() {
        let base = tempfile::tempdir().unwrap();
        let (root, outside) = (base.path().join("root"), base.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink(&outside, root.join("away")).unwrap();
        make(&root, base.path(), &[], Path::new("/a/b/c"), &OfContainer::default()).unwrap();
        make(&root, base.path(), &[], Path::new("/a/b/c"), &OfContainer::default()).unwrap();
        assert!(root.join("a/b/c").is_dir());
        // The links lead to places in the root that are not there: nothing is made outside.
        let _ = make(&root, base.path(), &[], Path::new("/up/x"), &OfContainer::default());
        let _ = make(&root, base.path(), &[], Path::new("/away/x"), &OfContainer::default());
        let _ = make(&root, base.path(), &[], Path::new("/../../outside/y"), &OfContainer::default());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn is_made_in_the_volume_that_will_be_there() {
        let base = tempfile::tempdir().unwrap();
        let (root, volume) = (base.path().join("root"), base.path().join("volume"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&volume).unwrap();
        let bind = MountBuilder::default()
            .destination("/data")
            .typ("bind")
            .source(&volume)
            .options(vec!["rbind".to_owned()])
            .build()
            .unwrap();
        let scratch =
            MountBuilder::default().destination("/run").typ("tmpfs").source("tmpfs").build().unwrap();
        let mounts = [bind, scratch];
        make(&root, base.path(), &mounts, Path::new("/data/x/y"), &OfContainer::default()).unwrap();
        make(&root, base.path(), &mounts, Path::new("/run/x"), &OfContainer::default()).unwrap();
        assert!(volume.join("x/y").is_dir());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
