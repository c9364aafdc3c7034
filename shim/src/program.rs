//! This very program, to be executed so that no container can change it: by way of a read-only mount of its directory that is
//! attached nowhere. The daemon starts shims in the same way; this is for those that containerd starts.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys;

/// Opens the program at `path` on a read-only mount that only this descriptor is there for.
pub(crate) fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let path = fs::canonicalize(path)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    };
    let tree = open_tree(CWD, directory, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::make_read_only(tree.as_fd())?;
    Ok(openat(&tree, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// Where the program is on the host. Executed by way of a mount that is attached nowhere, its own link does not say so, but who
/// starts it says it in the first argument.
pub(crate) fn path() -> PathBuf {
    let called = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
    called.or_else(|| std::env::current_exe().ok()).unwrap_or_else(|| PathBuf::from("berth-shim"))
}
