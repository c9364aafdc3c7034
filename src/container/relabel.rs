//! Giving a volume's files the SELinux label of the container that mounts it (`selinux_relabel` of a CRI mount).
//!
//! Without SELinux on the host no container has a label, and nothing of this runs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lsetxattr};

use super::error::Error;

const ATTRIBUTE: &str = "security.selinux";
/// Directories of the host that lose their meaning with another label; the same that other runtimes refuse.
const REFUSED: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root",
    "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log",
];

/// Labels `path` and all below it. Symbolic links are labelled themselves, never followed; other file systems below are left
/// alone where they take no labels.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    let failed = |source| Error::Path { action: "giving an SELinux label to", path: path.to_owned(), source };
    let found = path.canonicalize().map_err(failed)?;
    if REFUSED.iter().any(|refused| Path::new(refused) == found) {
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, "the host's own directory")));
    }
    let value = CString::new(label).map_err(|error| failed(error.into()))?;
    tree(&found, value.as_bytes_with_nul()).map_err(failed)
}

/// Directories nest as deep as who fills the volume likes: no recursion.
fn tree(top: &Path, value: &[u8]) -> io::Result<()> {
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        match one(&path, value, &mut waiting) {
            // Volumes are in use: files come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != top => {}
            result => result?,
        }
    }
    Ok(())
}

/// Labels one file, and says what is in it if it is a directory.
fn one(path: &Path, value: &[u8], inside: &mut Vec<PathBuf>) -> io::Result<()> {
    match lsetxattr(path.as_os_str().as_bytes(), ATTRIBUTE, value, XattrFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
        Err(error) => return Err(error.into()),
    }
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            inside.push(entry?.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn label_of(path: &Path) -> Option<String> {
        let mut value = [0_u8; 256];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned())
    }

    #[test]
    fn a_tree_is_labelled_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (volume, outside) = (root.path().join("volume"), root.path().join("outside"));
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::write(volume.join("a/file"), "x").unwrap();
        fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        relabel(&volume, label).unwrap();
        if label_of(&volume).is_none() {
            eprintln!("skipped: {} takes no labels", volume.display());
            return;
        }
        assert_eq!(label_of(&volume.join("a/file")).as_deref(), Some(label));
        assert_ne!(label_of(&outside).as_deref(), Some(label));
    }

    #[test]
    fn the_hosts_own_directories_are_refused() {
        for path in ["/", "/usr", "/var/lib/../lib"] {
            assert!(relabel(Path::new(path), "l").unwrap_err().to_string().contains("SELinux"));
        }
    }
}
