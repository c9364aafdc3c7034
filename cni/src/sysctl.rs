//! Kernel parameters of the calling thread's network namespace.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens a file in it.

use std::{fs, io::ErrorKind, path::PathBuf};

use crate::error::{Error, Result};

/// Writes a parameter unless it has the value already. A parameter that this kernel lacks (no IPv6) is left alone.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    let path = PathBuf::from(format!("/proc/sys/net/{name}"));
    match fs::write(&path, value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A read-only /proc/sys is fine when the value is right.
        Err(_) if get(name).as_deref() == Some(value) => Ok(()),
        Err(source) => Err(Error::File { action: "writing", path, source }),
        Ok(()) => Ok(()),
    }
}

/// Reads a parameter.
pub(crate) fn get(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok().map(|value| value.trim().to_owned())
}

/// Whether the kernel has IPv6 at all: `ipv6.disable=1` leaves it out.
pub(crate) fn has_ipv6() -> bool {
    PathBuf::from("/proc/sys/net/ipv6/conf").exists()
}

/// Lets the host forward. With IPv6 forwarding on, the kernel ignores router advertisements on interfaces that accept them only
/// as a host (`accept_ra` 1): those are set to 2 first, or the host would lose its own default route.
pub(crate) fn enable_forwarding(v4: bool, v6: bool) -> Result<()> {
    if v4 && get("ipv4/ip_forward").as_deref() != Some("1") {
        set("ipv4/ip_forward", "1")?;
    }
    if v6 && get("ipv6/conf/all/forwarding").as_deref() == Some("0") {
        for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let interface = interface.file_name().to_string_lossy().into_owned();
            let name = format!("ipv6/conf/{interface}/accept_ra");
            if interface != "all" && interface != "default" && get(&name).as_deref() == Some("1") {
                set(&name, "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
