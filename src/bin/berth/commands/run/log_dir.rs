//! Where the logs of `run` lie: `/var/log/berth/<name>-<start of the pod's uid>/0.log`, or below `--log-dir`.
//!
//! The CRI leaves making the directory to its client, as the kubelet does it; removing it as well.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::marks;

/// The directory of all of them.
pub(crate) const DEFAULT: &str = "/var/log/berth";
/// The container's log in its pod's directory.
pub(crate) const FILE: &str = "0.log";

/// Makes a pod's directory, for the daemon's user and group only: logs may hold anything.
pub(crate) fn create(directory: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(directory).with_context(|| {
        format!("making the log directory {} (choose another place with --log-dir)", directory.display())
    })
}

/// Removes a pod's directory: its log, what rotation made of that, then the directory itself, which stays when something
/// else lies in it. A failure is of no consequence to who removed the pod.
pub(crate) fn remove(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(FILE) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// The same for the pod with these annotations, where `run` made it one.
pub(crate) fn remove_of(annotations: &HashMap<String, String>) {
    if let Some(directory) = annotations.get(marks::LOG_DIRECTORY) {
        remove(Path::new(directory));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_logs_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (root.path().join("a/web-1"), root.path().join("a/web-2"));
        create(&one).unwrap();
        create(&other).unwrap();
        for file in ["0.log", "0.log.20260101-000000", "0.log.20260101-000001.gz"] {
            fs::write(one.join(file), "x").unwrap();
        }
        fs::write(other.join("0.log"), "x").unwrap();
        fs::write(other.join("notes"), "x").unwrap();
        remove(&one);
        remove_of(&HashMap::from([(marks::LOG_DIRECTORY.to_owned(), other.to_str().unwrap().to_owned())]));
        assert!(!one.exists());
        assert!(other.join("notes").exists() && !other.join("0.log").exists());
    }

    #[test]
    fn a_place_that_can_not_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = create(&file.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("--log-dir"), "{error:#}");
    }
}
