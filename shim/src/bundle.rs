//! Where things of a container are in its bundle directory, and what may be a name there.

use std::path::{Path, PathBuf};

/// Where libcontainer keeps its state of the container, and we what belongs to a creation.
pub(crate) fn state_root(bundle: &Path) -> PathBuf {
    bundle.join("state")
}

/// Ids become file names.
pub(crate) fn valid_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 200
        && id != "."
        && id != ".."
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-+".contains(&byte))
}
