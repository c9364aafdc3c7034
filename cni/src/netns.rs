//! Entering a network namespace, on a thread that ends afterwards.

use std::{fs::File, os::fd::AsFd, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// Opens a pinned namespace.
pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Netns { path: path.to_owned(), source })
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
