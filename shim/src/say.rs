//! What goes wrong on the way, on standard error: the shim's log, a file in the bundle.
//!
//! Nobody must depend on it. The macro of the standard library panics when a line can't be written, and the file lies where disks run
//! full: a shim that ended by that would lose its container, and how it ended, for a line nobody reads. And as it lies in memory, it
//! does not grow without end, whatever comes again and again.

use std::fmt::Display;
use std::io::Write;

/// After so many bytes no more lines are written.
const LOG_MAX: u64 = 1 << 20;

/// Says a line, if that can be done.
pub(crate) fn say(line: impl Display) {
    let full = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|file| u64::try_from(file.st_size).is_ok_and(|size| size >= LOG_MAX));
    if !full {
        // In one piece: what children of the shim say does not come between.
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}
