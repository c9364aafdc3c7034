//! What is wrong on a node, and what to do about it: looks at kernel and host that change nothing.
//!
//! It begins with what a preflight looks at ([`super::check`]) and goes on to what only shows once a node works: settings of
//! others that have changed, disks and tables that fill up, a clock that nobody keeps. What the daemon itself knows is asked of
//! it elsewhere; all of this works without one.

mod clock;
mod disk;
mod kubelet;
mod settings;
mod sockets;

use std::path::PathBuf;

use super::check::{self, Finding};
use super::{Error, HostRoot};

/// Bytes of the largest file that is read.
const LIMIT: u64 = 1 << 20;

/// How this node's daemon is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the daemon keeps over a reboot.
    pub root: PathBuf,
    /// What it loses.
    pub state: PathBuf,
    /// Its socket.
    pub address: PathBuf,
    /// Whether pods are joined to networks by the daemon itself.
    pub builtin_network: bool,
    /// `systemd` or `cgroupfs`, where that is known.
    pub cgroup_driver: Option<&'static str>,
}

/// Looks at everything that can be seen without the daemon.
///
/// # Errors
/// When the host can't be read.
pub fn host(root: &HostRoot, setup: &Setup) -> Result<Vec<Finding>, Error> {
    let mut findings = check::standing(root)?;
    findings.extend(settings::all(root, setup));
    findings.extend(disk::all(root, setup)?);
    findings.extend(kubelet::all(root, setup)?);
    findings.push(sockets::others(root, setup));
    findings.push(clock::clock());
    Ok(findings)
}

/// A file of the host's kernel, without blanks around it; `None` when it is not there.
fn kernel(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
