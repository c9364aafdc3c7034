//! Entering a network namespace, on a thread that ends afterwards.

use std::{fs::File, os::fd::AsFd, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// Opens a pinned namespace.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Netns { path: path.to_owned(), source })
}

/// Whether a namespace is pinned at a path. When that can't be told, it may be.
pub(crate) fn is_pinned(path: &Path) -> bool {
    /// `NSFS_MAGIC` (linux/magic.h).
    const NAMESPACE: u64 = 0x6e73_6673;
    match rustix::fs::statfs(path) {
        // A pin that was unmounted leaves a plain file.
        Ok(found) => u64::try_from(found.f_type).is_ok_and(|kind| kind == NAMESPACE),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => false,
        Err(_) => true,
    }
}

/// Runs a closure in a namespace and waits for it. The thread that enters is a new one and ends: a thread never has to find
/// its way back.
pub(crate) fn within<T: Send>(
    path: &Path,
    netns: &File,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let enter = || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::Netns { path: path.to_owned(), source: errno.into() })?;
            work()
        };
        let thread = thread::Builder::new()
            .name("berth-netns".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, enter)
            .map_err(|source| Error::Netns { path: path.to_owned(), source })?;
        thread.join().unwrap_or(Err(Error::Stopped("configuring a namespace")))
    })
}
