//! The status a shim leaves on disk when its container ends.

use std::fs;
use std::path::Path;

use serde::Deserialize;

/// `<bundle>/exit.json`, written by the shim before it answers anybody who waits.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ExitRecord {
    /// Process id the container's first process had.
    pub pid: u32,
    /// As a shell would report it: 128 + n for signal n.
    pub exit_code: i32,
    /// Signal that ended it, 0 for none.
    #[serde(default)]
    pub signal: i32,
    /// Nanoseconds since the Unix epoch.
    pub exited_at_ns: i64,
    /// The kernel's out-of-memory killer chose a process of its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
}

/// Reads the exit record of a bundle; `None` when the container has not ended, or the file is not one of a shim's.
pub fn read_exit_record(bundle: &Path) -> Option<ExitRecord> {
    let bytes = fs::read(bundle.join("exit.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_whole_record_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(read_exit_record(bundle.path()), None);
        fs::write(bundle.path().join("exit.json"), "{\"pid\":1,").unwrap();
        assert_eq!(read_exit_record(bundle.path()), None);
        let text = r#"{"pid":7,"exit_code":137,"signal":9,"exited_at_ns":5,"oom_killed":true}"#;
        fs::write(bundle.path().join("exit.json"), text).unwrap();
        let record = read_exit_record(bundle.path()).unwrap();
        assert_eq!((record.pid, record.exit_code, record.oom_killed), (7, 137, true));
    }
}
