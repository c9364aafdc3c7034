//! A container's root directory, opened.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Error, owners_of, stopped};
use crate::container::{ContainerSnapshot, ContainerState};
use crate::image::owners::Owners;
use std::path::PathBuf;

/// How often a path is looked up again that changed meanwhile (openat2(2), EAGAIN).
const TRIES: usize = 16;

/// The root, and how the container's users are called outside.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
    /// From the container to here.
    pub(super) owners: Owners,
}

/// Opens the root of a container that runs or has ended. Blocking; the calling thread may be in a mount namespace of its own
/// afterwards.
pub(super) fn open(container: &ContainerSnapshot, lower: &[PathBuf]) -> Result<Root, Error> {
    match container.state {
        ContainerState::Running { pid, .. } => running(container, pid),
        // What lies on disk has the numbers that the container sees, with a user namespace as well.
        ContainerState::Exited { .. } => {
            Ok(Root { directory: stopped::mount(container, lower)?, owners: Owners::same() })
        }
        ContainerState::Created => Err(unreachable(container, "it was not started yet")),
        ContainerState::Unknown => Err(unreachable(container, "its state is not known yet: try again")),
    }
}

fn unreachable(container: &ContainerSnapshot, reason: impl Into<String>) -> Error {
    Error::Unreachable { id: container.id.clone(), reason: reason.into() }
}

fn running(container: &ContainerSnapshot, pid: u32) -> Result<Root, Error> {
    let failed = |source: io::Error| unreachable(container, format!("opening its root: {source}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty());
    let directory = directory.map_err(|error| failed(error.into()))?;
    let owners = owners_of(pid)?;
    // Its number may be somebody else's by now, and of a container in a virtual machine it is that of a program on the host:
    // the process must be in the container's cgroup and on an overlay that is not the host's root.
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(failed)?;
    if !cgroup.contains(&container.id) {
        return Err(unreachable(container, "its first process has just ended: try again"));
    }
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(failed)?;
    let stat = rustix::fs::fstat(&directory).map_err(|error| failed(error.into()))?;
    let host = rustix::fs::stat("/").map_err(|error| failed(error.into()))?;
    if !is_overlay(&mounts) || (stat.st_dev, stat.st_ino) == (host.st_dev, host.st_ino) {
        return Err(unreachable(container, "its runtime keeps them to itself, as virtual machines do"));
    }
    Ok(Root { directory, owners })
}

/// Whether the topmost mount on `/` is an overlay (proc(5), "mountinfo").
fn is_overlay(mounts: &str) -> bool {
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    root.and_then(|line| line.split_once(" - ")).is_some_and(|(_, rest)| rest.starts_with("overlay "))
}

/// An error about a path in the container.
pub(super) fn at(what: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |error| Error::Path { what, path, source: error.into() }
}

impl Root {
    /// Opens a path as the container would: `/` and `..` end at its root, links too. Links of /proc are not followed.
    pub(super) fn open(&self, path: &str, what: &'static str, flags: OFlags) -> Result<OwnedFd, Error> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let mut tries = 0;
        loop {
            let opened = rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve);
            tries += 1;
            match opened {
                Err(Errno::AGAIN) if tries < TRIES => {}
                opened => return opened.map_err(at(what, path)),
            }
        }
    }

    /// Makes the calling thread somebody whose new files are root's in the container, without taking rights from it. For threads
    /// that end afterwards.
    pub(super) fn become_its_root(&self) -> Result<(), Error> {
        let failed =
            |source: io::Error| Error::System { what: "making files as the container's root", source };
        match self.owners.map(0, 0) {
            Some((0, 0)) => Ok(()),
            None => Err(failed(io::ErrorKind::PermissionDenied.into())),
            Some((uid, gid)) => {
                nix::unistd::setfsgid(nix::unistd::Gid::from_raw(gid));
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
                // That took the rights over files away from what is effective, not from what is permitted (capabilities(7)).
                let mut sets = rustix::thread::capabilities(None).map_err(|error| failed(error.into()))?;
                sets.effective = sets.permitted;
                rustix::thread::set_capabilities(None, sets).map_err(|error| failed(error.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_root_counts() {
        let overlay = "36 35 0:98 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b\n";
        let disk = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
        assert!(is_overlay(overlay) && !is_overlay(disk));
        assert!(is_overlay(&format!("{disk}{overlay}")) && !is_overlay(&format!("{overlay}{disk}")));
        assert!(!is_overlay("36 35 0:98 / /x rw - overlay overlay rw\n"));
    }
}
