//! What may be a name, and names that are derived from others.

use crate::error::{Error, Result};

/// Longest interface name the kernel takes (`IFNAMSIZ` without the terminating zero).
pub(crate) const INTERFACE_NAME_MAX: usize = 15;

/// Refuses what the kernel or our records could not hold as a name.
pub(crate) fn check_interface(what: &'static str, name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_MAX;
    if fits
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != ".."
    {
        return Ok(());
    }
    Err(Error::invalid(what, name, "an interface name has 1 to 15 visible characters without '/' and ':'"))
}

/// Refuses names that could not stand in a file name, a key or a message.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if first && rest && name.len() <= 128 {
        return Ok(());
    }
    Err(Error::invalid(what, name, "1 to 128 letters, digits, '-', '_' and '.', a letter or digit first"))
}

/// A stable 64-bit hash (FNV-1a): names derived from it must not change with the compiler.
pub(crate) fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}
