//! The clock: certificates are checked, and leases run out, by it.

use std::time::SystemTime;

use super::Finding;

const CHECK: &str = "clock";

pub(super) fn clock() -> Finding {
    // This program was put here in the past.
    let made = std::env::current_exe().and_then(std::fs::metadata).and_then(|meta| meta.modified());
    if made.is_ok_and(|made| made > SystemTime::now()) {
        let advice = "it is in the past: certificates of registries seem not to be valid yet; set it, and let chrony or \
                      systemd-timesyncd keep it";
        return Finding::wrong(CHECK, "it shows a time before this program was made", advice);
    }
    match crate::sys::clock_is_kept() {
        Ok(true) => Finding::ok(CHECK, "it is kept"),
        Ok(false) => {
            let advice = "let chrony or systemd-timesyncd keep it, unless the machine's host does";
            Finding::warning(CHECK, "nobody keeps it", advice)
        }
        Err(error) => Finding::warning(CHECK, format!("not known: {error}"), "look again as root"),
    }
}
