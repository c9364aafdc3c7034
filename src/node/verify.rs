//! Whether a host's files still are as they were installed.

use std::path::Path;

use super::manifest::Made;
use super::{Error, HostPath, HostRoot, Manifest};

/// A file that is not as it was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub path: HostPath,
    /// `missing` or `changed`.
    pub state: &'static str,
}

/// What was installed, and what is not as it was.
///
/// # Errors
/// When nothing is installed, or the host can't be read.
pub fn verify(root: &Path) -> Result<(Manifest, Vec<Difference>), Error> {
    let root = HostRoot::open(root)?;
    let path = Manifest::path()?;
    let manifest = Manifest::load(&root)?
        .ok_or(Error::Manifest { path, why: "not there: nothing is installed".into() })?;
    let mut wrong = Vec::new();
    for entry in &manifest.entries {
        let directory = entry.made == (Made::Directory {});
        let state = match root.look(&entry.path)? {
            None => "missing",
            Some(found) if entry.is(&found) => continue,
            Some(_) if directory && root.is_directory(entry.path.as_str()) => continue,
            Some(_) => "changed",
        };
        wrong.push(Difference { path: entry.path.clone(), state });
    }
    Ok((manifest, wrong))
}
