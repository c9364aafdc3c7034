//! Removing a tree that others made: however deep, with few descriptors and little stack.
//!
//! Whoever walks down by recursion needs a descriptor and a piece of stack for each level; a layer, or a container, that
//! nests directories some ten thousand deep would end the daemon by that, at each start again. So what lies deeper than
//! [`LEVELS`] is first moved up, beside the tree's top, and taken away from there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// Levels that are walked down: each takes two descriptors.
const LEVELS: usize = 64;
/// How often a directory is read again that is not empty afterwards.
const AGAIN: u32 = 3;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is at `path`, with all below it, following no link and entering no mount. Nothing there is success.
pub(crate) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let above = match rustix::fs::open(above, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        above => above?,
    };
    Ok(remove(above.as_fd(), name.as_bytes())?)
}

/// Removes what `name` in `directory` is, with all below it, following no link and entering no mount.
pub(crate) fn remove(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    if unlinked(directory, name)? {
        return Ok(());
    }
    let top = enter(directory, name)?;
    Removal { top: &top, moved: 0 }.directory(directory, name, &top, 0)
}

struct Removal<'a> {
    top: &'a OwnedFd,
    /// Directories that were moved up so far.
    moved: u64,
}

impl Removal<'_> {
    /// Takes away a directory, which is open as `inner`.
    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        inner: &OwnedFd,
        depth: usize,
    ) -> Result<(), Errno> {
        let mut again = AGAIN;
        loop {
            let before = self.moved;
            self.empty(inner, depth)?;
            match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
                // What was moved up is here, or a name was passed over while others went.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.moved > before || again > 0 => {
                    again = if self.moved > before { AGAIN } else { again - 1 };
                }
                removed => return removed,
            }
        }
    }

    /// Takes away what is in a directory. What is too deep is in the top afterwards.
    fn empty(&mut self, directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || unlinked(directory.as_fd(), name)? {
                continue;
            }
            if depth >= LEVELS {
                self.move_up(directory, name)?;
            } else {
                let inner = enter(directory.as_fd(), name)?;
                self.directory(directory.as_fd(), name, &inner, depth + 1)?;
            }
        }
        Ok(())
    }

    fn move_up(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let place = format!(".berth-deep-{}", self.moved);
            match rustix::fs::renameat_with(directory, name, self.top, place, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                moved => return moved,
            }
        }
    }
}

/// Removes what is no directory. `false`: it is one.
fn unlinked(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // POSIX says EPERM of directories, Linux mostly EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

fn enter(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(directory, name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV)
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Directories in one another, with a file in each.
    pub(crate) fn nested(at: &Path, levels: usize) {
        let mut inner = rustix::fs::open(at, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&inner, "d", Mode::RWXU).unwrap();
            rustix::fs::mknodat(&inner, "f", rustix::fs::FileType::RegularFile, Mode::RUSR, 0).unwrap();
            inner = rustix::fs::openat(&inner, "d", DIRECTORY, Mode::empty()).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::testing::nested;
    use super::*;

    #[test]
    fn however_deep_a_tree_is_it_goes() {
        let root = tempfile::Builder::new().prefix("berth-tree").tempdir_in("/run").unwrap();
        let deep = root.path().join("deep");
        std::fs::create_dir(&deep).unwrap();
        nested(&deep, 30_000);
        // A name of ours that is there already.
        std::fs::create_dir(deep.join(".berth-deep-1")).unwrap();
        nested(&deep.join(".berth-deep-1"), 200);
        let outside = root.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        let target = deep.clone();
        thread.spawn(move || remove_path(&target)).unwrap().join().unwrap().unwrap();
        assert!(!deep.exists() && outside.join("kept").exists());
        remove_path(&deep).unwrap();
        remove_path(&root.path().join("no/such")).unwrap();
    }

    #[test]
    fn a_mount_is_not_entered() {
        let root = tempfile::Builder::new().prefix("berth-tree").tempdir_in("/run").unwrap();
        std::fs::create_dir(root.path().join("tree")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let refused = |name: &[u8]| {
            let directory = rustix::fs::open("/", DIRECTORY, Mode::empty()).unwrap();
            enter(directory.as_fd(), name).unwrap_err()
        };
        assert_eq!(refused(b"proc"), Errno::XDEV);
        remove_path(&root.path().join("tree")).unwrap();
        remove_path(&root.path().join("file")).unwrap();
    }
}
