//! Mounts that a runtime can't make as the specification wants them, made beforehand by a process that can.
//!
//! The stage is a tmpfs below the bundle, in the mount namespace of the creation: it shows in no other, and ends with it. What is
//! mounted there has its ids mapped and its propagation set; the specification that the runtime gets binds it from there
//! (`staging`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags, mount, move_mount, unmount};

use crate::idmap::{Namespaces, clone_tree};
use crate::sys;
use crate::userns::{Maps, OfContainer};

/// See the module.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: PathBuf,
    mounted: bool,
    count: usize,
    namespaces: Namespaces,
}

impl Stage {
    pub(crate) fn new(bundle: &Path, container: &OfContainer) -> io::Result<Self> {
        let namespaces = Namespaces::new(container)?;
        Ok(Self { directory: bundle.join("stage"), mounted: false, count: 0, namespaces })
    }

    /// The path for one more mount: a directory, or an empty file.
    fn place(&mut self, directory: bool) -> io::Result<PathBuf> {
        if !self.mounted {
            fs::create_dir_all(&self.directory)?;
            mount("stage", &self.directory, "tmpfs", MountFlags::empty(), c"mode=711,size=64k")?;
            self.mounted = true;
        }
        let path = self.directory.join(self.count.to_string());
        self.count += 1;
        if directory {
            fs::create_dir(&path)?;
        } else {
            fs::File::create(&path)?;
        }
        Ok(path)
    }

    /// An empty directory, for something to be mounted on.
    pub(crate) fn directory(&mut self) -> io::Result<PathBuf> {
        self.place(true)
    }

    /// Puts a detached tree on the stage.
    fn attach(&mut self, tree: &OwnedFd) -> io::Result<PathBuf> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode);
        let path = self.place(kind == rustix::fs::FileType::Directory)?;
        move_mount(tree.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(path)
    }

    /// The directory with its owners mapped, for an overlay to be made of.
    pub(crate) fn layer(&mut self, directory: &Path, maps: &Maps) -> io::Result<PathBuf> {
        let stage = |stage: &mut Self| {
            let tree = clone_tree(directory, false)?;
            sys::mount_setattr(tree.as_fd(), false, libc::MS_PRIVATE, None)?;
            stage.namespaces.apply(&tree, maps, false)?;
            stage.attach(&tree)
        };
        stage(self).map_err(|error| {
            io::Error::new(error.kind(), format!("mapping the owners of {}: {error}", directory.display()))
        })
    }

    /// Takes something off the stage. Who holds it keeps it.
    pub(crate) fn drop_layer(&self, path: &Path) {
        let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_dir(path);
    }

    /// Puts a bind mount there.
    pub(crate) fn bind(&mut self, asked: &Asked<'_>) -> io::Result<PathBuf> {
        let tree = clone_tree(asked.source, asked.recursive)?;
        if let Some((propagation, recursive)) = asked.propagation {
            sys::mount_setattr(tree.as_fd(), recursive, propagation, None)?;
        }
        if let Some((maps, recursive)) = &asked.maps {
            self.namespaces.apply(&tree, maps, *recursive)?;
        }
        self.attach(&tree)
    }
}

/// What a bind mount asks for.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) source: &'a Path,
    pub(crate) recursive: bool,
    /// `MS_…`, and whether for all below as well.
    pub(crate) propagation: Option<(u64, bool)>,
    /// The ids, and whether for all below as well.
    pub(crate) maps: Option<(Maps, bool)>,
}
