//! Mounts that show other owners than their file system holds: detached clones of a tree, mapped, in no mount table.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys;
use crate::userns::{Holder, Maps, OfContainer};

/// User namespaces by what they map, for as long as a creation takes.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(Vec<(Maps, OwnedFd)>);

impl Namespaces {
    /// Begins with the container's own, if it joins one.
    pub(crate) fn new(container: &OfContainer) -> io::Result<Self> {
        match &container.joined {
            Some(fd) if !container.maps.uids.is_empty() && !container.maps.gids.is_empty() => {
                Ok(Self(vec![(container.maps.clone(), fd.try_clone()?)]))
            }
            _ => Ok(Self::default()),
        }
    }

    /// A namespace with these maps: one that is there, or a new one.
    fn get(&mut self, maps: &Maps) -> io::Result<&OwnedFd> {
        let index = match self.0.iter().position(|(known, _)| known == maps) {
            Some(index) => index,
            None => {
                let made = Holder::new(maps, 0).map_err(|error| {
                    io::Error::new(error.kind(), format!("making a user namespace: {error}"))
                })?;
                self.0.push((maps.clone(), File::open(made.namespace("user"))?.into()));
                self.0.len() - 1
            }
        };
        self.0.get(index).map(|(_, fd)| fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Maps the ids of the detached `tree`, with `recursive` also those of what is mounted below.
    pub(crate) fn apply(&mut self, tree: &OwnedFd, maps: &Maps, recursive: bool) -> io::Result<()> {
        let namespace = self.get(maps)?;
        sys::mount_setattr(tree.as_fd(), recursive, 0, Some(namespace.as_fd())).map_err(|error| {
            let why = match error.raw_os_error() {
                Some(libc::EINVAL) => {
                    "this kernel can't map the owners of its file system (ext4, XFS: Linux 5.12, btrfs: 5.15, \
                     overlayfs layers: 5.19, tmpfs: 6.3)"
                }
                Some(libc::EPERM) => "it is mapped already, or its file system belongs to another user namespace",
                _ => return error,
            };
            io::Error::new(error.kind(), format!("{why}: {error}"))
        })
    }
}

/// A detached clone of what is at `path`, with `recursive` also of what is mounted below it.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, path, flags)?)
}
