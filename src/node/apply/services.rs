//! What systemd is told.

use crate::node::places::SERVICE;

/// What systemd is told so that a service runs with new files.
pub(super) fn service_verbs(unit: &str, changed: bool) -> Vec<String> {
    match (unit == SERVICE, changed) {
        (true, true) => vec!["daemon-reload".into(), format!("restart {unit}")],
        (true, false) => vec![format!("start {unit}")],
        // Others' services are not started by us, only told.
        (false, true) => vec!["daemon-reload".into(), format!("try-restart {unit}")],
        (false, false) => Vec::new(),
    }
}
