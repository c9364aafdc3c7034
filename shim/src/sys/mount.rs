//! `mount_setattr(2)`, which no crate of ours wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Changes a mount that is open as `tree`, and with `recursive` all below it: `propagation` is an `MS_…` flag or 0, and
/// with `userns` ids are shown as that user namespace maps them.
pub(crate) fn mount_setattr(
    tree: BorrowedFd<'_>,
    recursive: bool,
    propagation: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let userns_fd = match userns {
        Some(fd) => u64::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
        None => 0,
    };
    let attr_set = if userns.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    set(tree, recursive, &libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd })
}

/// Makes a mount that is open as `tree` read-only.
pub(crate) fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_RDONLY;
    set(tree, false, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

fn set(tree: BorrowedFd<'_>, recursive: bool, attributes: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is null-terminated; `attributes` has the layout and size the kernel is told, and outlives the call.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(|_| ())
}
