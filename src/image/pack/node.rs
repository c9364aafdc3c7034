//! One thing of a directory, opened as nothing but itself.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Extended attributes of one file: as many bytes as the kernel lists (XATTR_LIST_MAX) and keeps in one (XATTR_SIZE_MAX).
const XATTR_LIMIT: usize = 64 << 10;
/// File systems that hold nothing of their own, by the magic numbers of linux/magic.h: proc, sysfs, devpts, cgroup, cgroup2, mqueue,
/// debugfs, tracefs, securityfs, bpf.
const VIRTUAL: [i64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x0027_e0eb,
    0x6367_7270,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
];

/// Extended attributes: names and values.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One thing, opened as nothing but itself.
pub(super) struct Node {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
    pub(super) kind: FileType,
}

impl Node {
    pub(super) fn open(directory: BorrowedFd<'_>, name: &CString) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(directory, name.as_c_str(), flags, Mode::empty())?;
        let stat = fs::fstat(&fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        Ok(Self { fd, stat, kind })
    }

    /// The same thing by its link in /proc: what a path descriptor itself is not allowed.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    pub(super) fn reopen(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        fs::open(self.path(), flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
    }

    pub(super) fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let mut value = vec![0; XATTR_LIMIT];
        match fs::getxattr(self.path(), name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All attributes but those that the next file system gives by itself.
    pub(super) fn xattrs(&self) -> Result<Xattrs, Errno> {
        if !matches!(self.kind, FileType::RegularFile | FileType::Directory) {
            return Ok(Vec::new());
        }
        let mut list = vec![0; XATTR_LIMIT];
        let length = match fs::listxattr(self.path(), list.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        list.truncate(length);
        let mut found = Vec::new();
        for name in list.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
            if let Some(value) = self.xattr(name)? {
                found.push((name.to_vec(), value));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Whether the kernel makes up what is in it.
pub(super) fn is_virtual(directory: &OwnedFd) -> bool {
    fs::fstatfs(directory).is_ok_and(|stat| VIRTUAL.contains(&stat.f_type))
}

/// Capabilities and what programs set. Labels of the host's security modules are the host's, ACLs ride on `system.`.
fn is_kept(name: &[u8]) -> bool {
    let ours = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    !ours && (name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"trusted."))
}
