//! Notices that the directory of configurations is another: changed, appeared, gone, recreated.
//!
//! By looking, not by inotify: a watch ends with the directory it was set on, and what appears between its end and the next
//! watch is missed. Add-ons delete and recreate the directory, mount over it, or link it. A look is a handful of system calls.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// What identifies the state of a directory: each candidate with inode, size and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signature(Option<Vec<(PathBuf, [i64; 5])>>);

/// Looks at it now. Network directories of a list (`NAME/*.conf`) count as well.
pub(super) fn look(directory: &Path) -> Signature {
    let mut found = Vec::new();
    look_into(directory, 0, &mut found);
    found.sort();
    // Never equal to what nobody has looked at yet.
    Signature(Some(found))
}

fn look_into(directory: &Path, depth: u8, found: &mut Vec<(PathBuf, [i64; 5])>) {
    /// Far more than any node has.
    const ENTRIES_MAX: usize = 1_000;
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.take(ENTRIES_MAX) {
        let path = entry.path();
        // Through links: what is pointed to counts.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            if depth == 0 {
                look_into(&path, 1, found);
            }
            continue;
        }
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let facts = [
            number(metadata.ino()),
            number(metadata.size()),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime_nsec(),
        ];
        found.push((path, facts));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_change_shows() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("net.d");
        let missing = look(&directory);
        assert_eq!(missing, look(&directory));
        assert_ne!(missing, Signature::default());
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("10-a.conf");
        std::fs::write(&file, "{}").unwrap();
        let first = look(&directory);
        assert_ne!(missing, first);
        std::fs::write(&file, "{ }").unwrap();
        let second = look(&directory);
        assert_ne!(first, second);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(look(&directory), missing);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(&file, "{ }").unwrap();
        assert_ne!(look(&directory), second);
        std::fs::create_dir(directory.join("a")).unwrap();
        let before = look(&directory);
        std::fs::write(directory.join("a/more.conf"), "{}").unwrap();
        assert_ne!(look(&directory), before);
    }
}
