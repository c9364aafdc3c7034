//! The kernel's settings: what others turn off, what fills up, what this kernel is too old for.

use super::{Finding, HostRoot, Setup, kernel};
use crate::node::HostPath;

/// Instances that one watcher in the daemon, the kubelet and the usual agents need together.
const INOTIFY: u64 = 128;
/// Parts of a hundred of the connection table from which on packets are soon dropped.
const CONNECTIONS: u64 = 90;
/// What some features need, and what is missing without (Linux versions: see docs/installing.md).
const FEATURES: &[((u32, u32), &str)] = &[
    ((5, 14), "killing a cgroup in one step"),
    ((5, 19), "owners mapped by overlayfs, peak memory of pods"),
    ((6, 3), "pods with user namespaces"),
    ((6, 12), "EROFS images on plain files"),
];
/// Modules that are loaded when they are first asked for.
const MODULES: &[&str] = &["overlay", "nf_tables", "bridge", "veth"];

pub(super) fn all(root: &HostRoot, setup: &Setup) -> Vec<Finding> {
    let release = kernel("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![features(&release), modules(root, &release)];
    if setup.builtin_network {
        findings.push(forwarding(kernel("/proc/sys/net/ipv4/ip_forward").as_deref()));
    }
    findings.push(bridges(kernel("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref()));
    let number = |path: &str| kernel(path).and_then(|text| text.parse().ok());
    findings.push(inotify(number("/proc/sys/fs/inotify/max_user_instances")));
    findings.push(connections(
        number("/proc/sys/net/netfilter/nf_conntrack_count"),
        number("/proc/sys/net/netfilter/nf_conntrack_max"),
    ));
    findings
}

fn features(release: &str) -> Finding {
    let mut numbers =
        release.split(|char: char| !char.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let lacking: Vec<String> = FEATURES
        .iter()
        .filter(|(floor, _)| version < *floor)
        .map(|((major, minor), what)| format!("{what} ({major}.{minor})"))
        .collect();
    if lacking.is_empty() {
        Finding::ok("kernel features", "all that Berth can use")
    } else {
        Finding::ok("kernel features", format!("without {}", lacking.join(", ")))
    }
}

/// Built in, loaded, or there to be loaded.
fn modules(root: &HostRoot, release: &str) -> Finding {
    let path = |name: &str| HostPath::try_from(format!("/lib/modules/{release}/{name}"));
    let read = |name: &str| path(name).and_then(|path| root.read(&path, 16 << 20)).ok().flatten();
    let Some(known) = read("modules.dep") else {
        return Finding::ok("modules", "none on this host: what the kernel has is built in");
    };
    let mut known = String::from_utf8_lossy(&known).into_owned();
    known.push_str(&String::from_utf8_lossy(&read("modules.builtin").unwrap_or_default()));
    let is_there = |name: &&&str| {
        let loaded = std::path::Path::new("/sys/module").join(name).exists();
        loaded || known.contains(&format!("/{name}.ko"))
    };
    let lacking: Vec<&str> = MODULES.iter().filter(|name| !is_there(name)).copied().collect();
    if lacking.is_empty() {
        Finding::ok("modules", "all that are needed can be loaded")
    } else {
        let advice =
            format!("install the package with this kernel's modules ({release}), or boot another kernel");
        Finding::wrong("modules", format!("no {}", lacking.join(", ")), advice)
    }
}

fn forwarding(value: Option<&str>) -> Finding {
    match value {
        Some("1") => Finding::ok("forwarding", "on"),
        Some(_) => {
            let advice = "pods reach nothing beyond this node: sysctl -w net.ipv4.ip_forward=1, and look in /etc/sysctl.d for \
                          what turns it off (the daemon turns it on when it starts)";
            Finding::wrong("forwarding", "net.ipv4.ip_forward is off", advice)
        }
        None => Finding::ok("forwarding", "not known"),
    }
}

/// Between pods of one bridge packets pass by the rules of a Service only where bridges call the firewall.
fn bridges(value: Option<&str>) -> Finding {
    match value {
        Some("1") => Finding::ok("bridge firewall", "on"),
        Some(_) => {
            let advice = "a pod that reaches another one of this node by a Service's address gets no answer: \
                          sysctl -w net.bridge.bridge-nf-call-iptables=1";
            Finding::warning("bridge firewall", "net.bridge.bridge-nf-call-iptables is off", advice)
        }
        None => Finding::ok("bridge firewall", "br_netfilter is not loaded; kube-proxy wants it"),
    }
}

fn inotify(instances: Option<u64>) -> Finding {
    match instances {
        Some(instances) if instances < INOTIFY => {
            let advice = format!(
                "`too many open files` in pods and agents: sysctl -w fs.inotify.max_user_instances={}",
                INOTIFY * 8
            );
            Finding::warning("inotify", format!("{instances} instances a user"), advice)
        }
        Some(instances) => Finding::ok("inotify", format!("{instances} instances a user")),
        None => Finding::ok("inotify", "not known"),
    }
}

fn connections(count: Option<u64>, most: Option<u64>) -> Finding {
    let (Some(count), Some(most)) = (count, most) else {
        return Finding::ok("connections", "not tracked");
    };
    let percent = count.saturating_mul(100).checked_div(most).unwrap_or(0);
    let found = format!("{count} of {most} tracked");
    if percent >= CONNECTIONS {
        let advice = format!(
            "new connections are soon dropped: sysctl -w net.netfilter.nf_conntrack_max={}",
            most.saturating_mul(2)
        );
        Finding::wrong("connections", found, advice)
    } else {
        Finding::ok("connections", found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::check::Level;
    use super::*;

    #[test]
    fn settings_are_judged() {
        assert_eq!(forwarding(Some("0")).level, Level::Wrong);
        assert_eq!(forwarding(Some("1")).level, Level::Ok);
        assert_eq!(bridges(Some("0")).level, Level::Warning);
        assert_eq!(bridges(None).level, Level::Ok);
        assert_eq!(inotify(Some(64)).level, Level::Warning);
        assert_eq!(connections(Some(950), Some(1000)).level, Level::Wrong);
        assert_eq!(connections(Some(10), Some(1000)).level, Level::Ok);
        assert!(features("5.15.0").found.contains("user namespaces (6.3)"));
        assert!(!features("6.18.1").found.contains("without"));
    }

    #[test]
    fn modules_that_nobody_can_load_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = HostRoot::open(dir.path()).unwrap();
        assert_eq!(modules(&root, "0.0.0").level, Level::Ok);
        let modules_of = dir.path().join("lib/modules/0.0.0");
        std::fs::create_dir_all(&modules_of).unwrap();
        std::fs::write(modules_of.join("modules.dep"), "kernel/net/bridge/bridge.ko:\n").unwrap();
        std::fs::write(modules_of.join("modules.builtin"), "kernel/fs/overlayfs/overlay.ko\n").unwrap();
        let found = modules(&root, "0.0.0").found;
        // Those that this machine has loaded are not named.
        assert!(!found.contains("bridge") && !found.contains("overlay"), "{found}");
    }
}
