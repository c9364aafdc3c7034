//! Extended attributes of entries.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::EntryError;

/// Marks a directory that hides what lower layers have in it (kernel, filesystems/overlayfs.rst).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Overlayfs' own marks are ours to set: an archive that brings them would speak to the kernel in our name.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// What the file system can't keep is left out, as every unpacker does; anything else is an error.
fn tolerated(result: Result<(), Errno>) -> Result<(), EntryError> {
    match result {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(EntryError::system("setting an extended attribute")(error)),
    }
}

/// Sets attributes on an open file or directory.
pub(crate) fn set(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EntryError> {
    for (name, value) in xattrs.iter().filter(|(name, _)| !is_ours(name)) {
        tolerated(rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// Sets attributes on what can't be opened: links, devices, pipes. Such have no `user.` attributes (EPERM).
pub(crate) fn set_at(
    directory: BorrowedFd<'_>,
    name: &[u8],
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Result<(), EntryError> {
    for (key, value) in xattrs.iter().filter(|(key, _)| !is_ours(key)) {
        let path = [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat();
        let result = rustix::fs::lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty());
        tolerated(result.or_else(|error| if error == Errno::PERM { Ok(()) } else { Err(error) }))?;
    }
    Ok(())
}

/// Makes a directory opaque.
pub(crate) fn set_opaque(directory: BorrowedFd<'_>) -> Result<(), EntryError> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
        .map_err(EntryError::system("marking the directory opaque"))
}
