//! What pods get of the host's own files.

use std::fs;
use std::path::{Path, PathBuf};

/// The host's root.
#[derive(Clone, Debug)]
pub(super) struct HostFiles(PathBuf);

impl Default for HostFiles {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl HostFiles {
    /// Those below another root.
    pub(super) fn below(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// `/etc/resolv.conf`. A host without a resolver configuration has none to give.
    pub(super) fn resolv_conf(&self) -> String {
        fs::read_to_string(self.0.join("etc/resolv.conf")).unwrap_or_default()
    }

    /// The servers that systemd-resolved asks (systemd-resolved.service(8), "/etc/resolv.conf"), where it runs.
    pub(super) fn uplink_resolv_conf(&self) -> String {
        fs::read_to_string(self.0.join("run/systemd/resolve/resolv.conf")).unwrap_or_default()
    }

    /// `/etc/hosts`, if there is one.
    pub(super) fn hosts(&self) -> Option<Vec<u8>> {
        fs::read(self.0.join("etc/hosts")).ok()
    }
}
