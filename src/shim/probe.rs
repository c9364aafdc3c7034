//! What the kernel lets a shim do, found out by trying.

use std::path::Path;
use std::process::{Command, Stdio};

/// Why pods whose files are below `root` and `state` can't have user namespaces; `None`: they can. The shim's program makes
/// one, and mounts of every kind that such a pod needs, in a mount namespace of its own. Blocks for some milliseconds.
pub fn user_namespaces(program: &Path, root: &Path, state: &Path) -> Option<String> {
    let output = Command::new(program)
        .arg("probe-userns")
        .arg("--root")
        .arg(root)
        .arg("--state")
        .arg(state)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Some(said.trim().trim_start_matches("berth-shim: ").to_owned())
        }
        Err(error) => Some(format!("{}: {error}", program.display())),
    }
}
