//! Changes below the root, each whole or not at all.
//!
//! A new file or link is made beside its place (`.NAME.berth-new`), synced, and renamed into it. What it replaces stays as
//! `.NAME.berth-old`, a second name of the same inode, until the run is settled: undoing is a rename, which needs no space.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{FileFacts, HostPath, HostRoot, failed};
use crate::node::Error;

fn new(path: &HostPath) -> String {
    format!(".{}.berth-new", path.name())
}

fn old(path: &HostPath) -> String {
    format!(".{}.berth-old", path.name())
}

impl HostRoot {
    /// Puts a file into place: where nothing is, or with `over` in place of what is there.
    pub(in crate::node) fn put_file(
        &self,
        path: &HostPath,
        content: &mut dyn Read,
        mode: u32,
        over: bool,
    ) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let staged = new(path);
        forget(&parent, &staged).map_err(failed("removing what an earlier run left beside", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&parent, &staged, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("making", path))?;
        let mut file = std::fs::File::from(file);
        let written = io::copy(content, &mut file)
            .and_then(|_| file.flush())
            .and_then(|()| rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(io::Error::from))
            .and_then(|()| file.sync_all())
            .map_err(|source| Error::Host { doing: "writing", path: path.clone(), source });
        written.and_then(|()| place(&parent, path, over)).inspect_err(|_| {
            // The error at hand says more than one of this.
            let _ = forget(&parent, &staged);
        })
    }

    /// Puts a symbolic link into place.
    pub(in crate::node) fn put_link(&self, path: &HostPath, target: &str, over: bool) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let staged = new(path);
        forget(&parent, &staged).map_err(failed("removing what an earlier run left beside", path))?;
        rustix::fs::symlinkat(target, &parent, &staged).map_err(failed("linking", path))?;
        place(&parent, path, over).inspect_err(|_| {
            let _ = forget(&parent, &staged);
        })
    }

    /// Makes a directory whose own directory is there.
    pub(in crate::node) fn make_directory(&self, path: &HostPath, mode: u32) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let made = failed("making", path);
        rustix::fs::mkdirat(&parent, path.name(), Mode::from_raw_mode(mode)).map_err(made)?;
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmodat(&parent, path.name(), mode, AtFlags::empty())
            .map_err(failed("setting the mode of", path))
    }

    /// Gives a file the owner, mode and time that it had.
    pub(in crate::node) fn dress(&self, path: &HostPath, facts: &FileFacts) -> Result<(), Error> {
        let parent = self.parent(path)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(facts.uid), rustix::fs::Gid::from_raw(facts.gid));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&parent, path.name(), flags, Mode::empty())
            .map_err(failed("opening", path))?;
        // The owner first: changing it clears the set-id bits.
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed("setting the owner of", path))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(facts.mode))
            .map_err(failed("setting the mode of", path))?;
        let modified = Timespec { tv_sec: facts.modified.0, tv_nsec: facts.modified.1 };
        let times = Timestamps { last_access: modified, last_modification: modified };
        rustix::fs::futimens(&file, &times).map_err(failed("setting the time of", path))
    }

    /// Removes a file or link. Nothing there is success.
    pub(in crate::node) fn remove(&self, path: &HostPath) -> Result<(), Error> {
        match self.parent(path) {
            Ok(parent) => forget(&parent, path.name()).map_err(failed("removing", path)),
            Err(error) if error.is_host(io::ErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes an empty directory. Returns whether it is gone: one that holds something stays.
    pub(in crate::node) fn remove_directory(&self, path: &HostPath) -> Result<bool, Error> {
        let parent = match self.parent(path) {
            Ok(parent) => parent,
            Err(error) if error.is_host(io::ErrorKind::NotFound) => return Ok(true),
            Err(error) => return Err(error),
        };
        match rustix::fs::unlinkat(&parent, path.name(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(failed("removing", path)(error)),
        }
    }

    /// Puts back what [`Self::put_file`] or [`Self::put_link`] replaced.
    pub(in crate::node) fn put_back(&self, path: &HostPath) -> Result<(), Error> {
        let parent = self.parent(path)?;
        rustix::fs::renameat(&parent, old(path), &parent, path.name()).map_err(failed("putting back", path))
    }

    /// Drops what was replaced, and what an interrupted run left beside a path.
    pub(in crate::node) fn settle(&self, path: &HostPath) -> Result<(), Error> {
        let parent = match self.parent(path) {
            Ok(parent) => parent,
            Err(error)
                if error.is_host(io::ErrorKind::NotFound) || error.is_host(io::ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for name in [new(path), old(path)] {
            forget(&parent, &name).map_err(failed("removing what a run left beside", path))?;
        }
        Ok(())
    }

    /// Makes a directory with one file in it appear as a whole.
    pub(in crate::node) fn appear(
        &self,
        path: &HostPath,
        inner: &[&str],
        file: &str,
        content: &[u8],
    ) -> Result<(), Error> {
        self.vanish_staged(path, inner, file)?;
        let parent = self.parent(path)?;
        let staged = new(path);
        let made = (|| -> io::Result<()> {
            let open = |at: &OwnedFd, name: &str| -> io::Result<OwnedFd> {
                rustix::fs::mkdirat(at, name, Mode::RWXU)?;
                rustix::fs::chmodat(at, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                Ok(rustix::fs::openat(at, name, super::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
            };
            let mut directory = open(&parent, &staged)?;
            for name in inner {
                directory = open(&directory, name)?;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let written = rustix::fs::openat(&directory, file, flags, Mode::RUSR | Mode::WUSR)?;
            let mut written = std::fs::File::from(written);
            written.write_all(content)?;
            written.sync_all()?;
            rustix::fs::renameat_with(&parent, &staged, &parent, path.name(), RenameFlags::NOREPLACE)?;
            rustix::fs::fsync(&parent)?;
            Ok(())
        })();
        made.map_err(|source| {
            let _ = self.vanish_staged(path, inner, file);
            Error::Host { doing: "making", path: path.clone(), source }
        })
    }

    /// Removes a directory that [`Self::appear`] made, as a whole; nothing is done when more is in it.
    /// Returns whether it is gone.
    pub(in crate::node) fn vanish(&self, path: &HostPath, inner: &[&str], file: &str) -> Result<bool, Error> {
        let mut at = path.clone();
        for name in inner.iter().copied().chain([file]) {
            if self.names(&at)?.iter().any(|found| found != name) {
                return Ok(false);
            }
            at = HostPath::try_from(format!("{at}/{name}"))?;
        }
        let parent = self.parent(path)?;
        rustix::fs::renameat_with(&parent, path.name(), &parent, new(path), RenameFlags::NOREPLACE)
            .map_err(failed("removing", path))?;
        self.vanish_staged(path, inner, file)?;
        Ok(true)
    }

    /// Removes what was not yet, or no longer, in place of a directory.
    pub(in crate::node) fn vanish_staged(
        &self,
        path: &HostPath,
        inner: &[&str],
        file: &str,
    ) -> Result<(), Error> {
        let above = path.parent().trim_end_matches('/');
        let mut chain = vec![HostPath::try_from(format!("{above}/{}", new(path)))?];
        let mut at = chain[0].clone();
        for name in inner {
            at = HostPath::try_from(format!("{at}/{name}"))?;
            chain.push(at.clone());
        }
        for left in [file.to_owned(), format!(".{file}.berth-old")] {
            self.remove(&HostPath::try_from(format!("{at}/{left}"))?)?;
        }
        for directory in chain.iter().rev() {
            self.remove_directory(directory)?;
        }
        Ok(())
    }
}

/// Renames the staged thing into its place.
fn place(parent: &OwnedFd, path: &HostPath, over: bool) -> Result<(), Error> {
    let (staged, kept) = (new(path), old(path));
    let put = if over {
        forget(parent, &kept)
            .and_then(|()| rustix::fs::linkat(parent, path.name(), parent, &kept, AtFlags::empty()))
            .and_then(|()| rustix::fs::renameat(parent, &staged, parent, path.name()))
    } else {
        rustix::fs::renameat_with(parent, &staged, parent, path.name(), RenameFlags::NOREPLACE)
    };
    put.and_then(|()| rustix::fs::fsync(parent.as_fd())).map_err(failed("putting into place", path))
}

/// Removes a name that may not be there, and is no directory.
fn forget(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}
