//! What the kernel has. It is the host's own in a container as well.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::{Finding, HostRoot, Mode};
use crate::cgroup;
use crate::node::HostPath;

/// The oldest kernel that pods run on (recursive read-only mounts, `mount_setattr`).
const FLOOR: (u32, u32) = (5, 12);
/// Pods with user namespaces.
const USER_NAMESPACES: (u32, u32) = (6, 3);

pub(super) fn all(root: &HostRoot, mode: Mode) -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease");
    let mut findings = vec![version(release.trim()), cgroups(), overlay(root, release.trim())];
    findings.extend([namespaces(), seccomp()]);
    if mode == Mode::Node {
        findings.push(nftables());
    }
    findings
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Judges a release such as `6.12.3-amd64`.
fn version(release: &str) -> Finding {
    let mut numbers =
        release.split(|char: char| !char.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let needs = |(major, minor): (u32, u32)| format!("Linux {major}.{minor}");
    if version < FLOOR {
        Finding::missing("kernel", release, format!("Berth needs {} or newer", needs(FLOOR)))
    } else if version < USER_NAMESPACES {
        let advice = format!("pods with user namespaces need {}; all else works", needs(USER_NAMESPACES));
        Finding::warning("kernel", release, advice)
    } else {
        Finding::ok("kernel", release)
    }
}

fn cgroups() -> Finding {
    let mode = cgroup::Mode::detect();
    let missing: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|name| !mode.has_controller(name)).collect();
    if !missing.is_empty() {
        let advice = "enable them: cgroup_enable=memory on the kernel's command line, or \
                      echo +cpu +memory +pids > /sys/fs/cgroup/cgroup.subtree_control";
        return Finding::missing("cgroups", format!("no {} controller", missing.join(", ")), advice);
    }
    match mode {
        cgroup::Mode::Unified => Finding::ok("cgroups", "v2"),
        cgroup::Mode::Hybrid | cgroup::Mode::Legacy => {
            let advice = "Berth runs on it; the kubelet refuses v1 since 1.35 unless failCgroupV1 is false";
            Finding::warning("cgroups", "v1", advice)
        }
    }
}

fn overlay(root: &HostRoot, release: &str) -> Finding {
    let filesystems = read("/proc/filesystems");
    if filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        return Finding::ok("overlayfs", "in the kernel");
    }
    let module = ["/lib/modules", "/usr/lib/modules"].into_iter().any(|modules| {
        let directory = format!("{modules}/{release}/kernel/fs/overlayfs");
        let names = HostPath::try_from(directory).and_then(|path| root.names(&path)).unwrap_or_default();
        names.iter().any(|name| name.starts_with("overlay.ko"))
    });
    if module {
        Finding::ok("overlayfs", "a module, loaded when berthd starts")
    } else {
        let advice = "use a kernel with CONFIG_OVERLAY_FS, or install its modules";
        Finding::missing("overlayfs", "not there", advice)
    }
}

fn namespaces() -> Finding {
    let there = |name: &&str| Path::new("/proc/self/ns").join(name).exists();
    let lacks: Vec<&str> =
        ["mnt", "net", "pid", "ipc", "uts"].into_iter().filter(|name| !there(name)).collect();
    if !lacks.is_empty() {
        let advice = "use a kernel that has them (CONFIG_NAMESPACES and those below it)";
        return Finding::missing("namespaces", format!("no {}", lacks.join(", ")), advice);
    }
    let user = there(&"user") && read("/proc/sys/user/max_user_namespaces").trim() != "0";
    if user && there(&"cgroup") {
        Finding::ok("namespaces", "all kinds")
    } else {
        let lacks = if user { "no cgroup namespaces" } else { "no user namespaces" };
        let advice = "pods that ask for them are refused; see /proc/sys/user/max_user_namespaces and the kernel's options";
        Finding::warning("namespaces", lacks, advice)
    }
}

fn seccomp() -> Finding {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        Finding::ok("seccomp", "there")
    } else {
        let advice = "containers with a seccomp profile, RuntimeDefault too, are refused; use a kernel with CONFIG_SECCOMP_FILTER";
        Finding::warning("seccomp", "not there", advice)
    }
}

fn nftables() -> Finding {
    match generation() {
        Ok(()) => Finding::ok("nftables", "there"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::warning("nftables", "not known", "look again as root: asking takes CAP_NET_ADMIN")
        }
        Err(error) => {
            let advice = "published ports and the built-in network need it: modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES";
            Finding::missing("nftables", format!("the kernel says: {error}"), advice)
        }
    }
}

/// Asks nf_tables for its generation, which changes nothing and loads its module
/// (`include/uapi/linux/netfilter/nf_tables.h`: NFT_MSG_GETGEN, answered by NFT_MSG_NEWGEN).
fn generation() -> io::Result<()> {
    const TABLES: u16 = 10 << 8;
    const NEW: u16 = TABLES | 15;
    const GET: u16 = TABLES | 16;
    const REQUEST: u16 = 1;
    let netfilter = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // nlmsghdr (length, type, flags, sequence, port) and nfgenmsg (family, version, resource).
    let mut message = Vec::with_capacity(20);
    message.extend(20_u32.to_ne_bytes());
    message.extend(GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 12]);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    if length < 20 {
        return Err(io::Error::other("a short answer"));
    }
    if u16::from_ne_bytes([answer[4], answer[5]]) == NEW {
        return Ok(());
    }
    let number = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    Err(io::Error::from_raw_os_error(number.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_version() {
        assert_eq!(version("6.12.3-amd64").level, Level::Ok);
        assert_eq!(version("5.15.0-91-generic").level, Level::Warning);
        assert_eq!(version("5.4.0").level, Level::Missing);
        assert_eq!(version("").level, Level::Missing);
    }
}
