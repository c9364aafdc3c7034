//! Sysctls of a pod: only those that a namespace of the pod's own holds.
//!
//! They are written once, by whoever makes the pod's namespaces, from inside them; containers then find them set. What
//! is not namespaced would change the whole host and is refused.

use std::path::PathBuf;

use super::{Error, namespaces};
use crate::proto::runtime::v1::PodSandboxConfig;

const IPC: [&str; 12] = [
    "kernel.auto_msgmni",
    "kernel.msg_next_id",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shm_next_id",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// The namespace that holds a sysctl.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scope {
    /// The network namespace.
    Network,
    /// The IPC namespace.
    Ipc,
    /// The UTS namespace.
    Uts,
}

/// One sysctl to write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sysctl {
    /// Its name with dots, as the caller wrote it.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The namespace from which it is to be written.
    pub scope: Scope,
}

impl Sysctl {
    /// The file to write, in a /proc that belongs to a process in the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(slashes(&self.name))
    }
}

/// The pod's sysctls, checked, in the order of their names.
pub fn sysctls(pod: &PodSandboxConfig) -> Result<Vec<Sysctl>, Error> {
    const FIELD: &str = "linux.sysctls";
    let Some(linux) = &pod.linux else { return Ok(Vec::new()) };
    let mut list = Vec::new();
    for (name, value) in &linux.sysctls {
        let bad = |reason| Error::invalid(FIELD, name, reason);
        let path = slashes(name);
        let legal = |part: &str| {
            !part.is_empty()
                && part != ".."
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'@'))
        };
        if name.len() > 253 || !path.split('/').all(legal) {
            return Err(bad("is not a sysctl's name"));
        }
        if value.contains(['\0', '\n']) || value.len() > 4096 {
            return Err(bad("has a value of more than one line or 4096 bytes"));
        }
        let dotted = path.replace('/', ".");
        let scope = if dotted.starts_with("net.") {
            if namespaces::host_network(pod) {
                return Err(bad("can't be set by a pod in the host's network"));
            }
            Scope::Network
        } else if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
            if namespaces::host_ipc(pod) {
                return Err(bad("can't be set by a pod in the host's IPC namespace"));
            }
            Scope::Ipc
        } else if dotted == "kernel.domainname" {
            if namespaces::host_network(pod) {
                return Err(bad("can't be set by a pod in the host's network"));
            }
            Scope::Uts
        } else if dotted == "kernel.hostname" {
            return Err(bad("is set by the pod's hostname"));
        } else {
            return Err(bad("is not of a namespace of the pod: it would change the whole host"));
        };
        list.push(Sysctl { name: name.clone(), value: value.clone(), scope });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// sysctl(8): the separator is whichever of dot and slash comes first, the other is part of a name
/// (`net/ipv4/conf/eth0.100/forwarding`, `net.ipv4.conf.eth0/100.forwarding`).
fn slashes(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::{NamespaceMode, NamespaceOption};

    fn fixture(name: &str, value: &str, host: bool) -> Fixture {
        let mut fixture = Fixture::new();
        let node = NamespaceMode::Node as i32;
        if host {
            fixture.pod_context().namespace_options =
                Some(NamespaceOption { network: node, ipc: node, ..Default::default() });
        }
        fixture.pod.linux.as_mut().unwrap().sysctls.insert(name.into(), value.into());
        fixture
    }

    #[test]
    fn namespaced() {
        for (name, scope, path) in [
            ("net.core.somaxconn", Scope::Network, "/proc/sys/net/core/somaxconn"),
            (
                "net/ipv4/conf/eth0.100/forwarding",
                Scope::Network,
                "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
            ),
            (
                "net.ipv4.conf.eth0/100.forwarding",
                Scope::Network,
                "/proc/sys/net/ipv4/conf/eth0.100/forwarding",
            ),
            ("kernel.shm_rmid_forced", Scope::Ipc, "/proc/sys/kernel/shm_rmid_forced"),
            ("kernel.shmmni", Scope::Ipc, "/proc/sys/kernel/shmmni"),
            ("fs.mqueue.msg_max", Scope::Ipc, "/proc/sys/fs/mqueue/msg_max"),
            ("kernel.domainname", Scope::Uts, "/proc/sys/kernel/domainname"),
        ] {
            let list = sysctls(&fixture(name, "1", false).pod).unwrap();
            assert_eq!(
                (list.len(), list[0].scope, list[0].path()),
                (1, scope, PathBuf::from(path)),
                "{name}"
            );
            let error = sysctls(&fixture(name, "1", true).pod).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert_eq!(sysctls(&PodSandboxConfig::default()).unwrap(), []);
    }

    #[test]
    fn refused() {
        for (name, value) in [
            ("vm.swappiness", "1"),
            ("kernel.panic", "1"),
            ("kernel.hostname", "x"),
            ("kernel.shm", "1"),
            ("net", "1"),
            ("", "1"),
            ("net..core", "1"),
            ("net/../kernel/panic", "1"),
            ("net.//.kernel.panic", "1"),
            ("../../etc/passwd", "1"),
            ("net.core.somaxconn", "1\n2"),
            ("net.core.some conn", "1"),
        ] {
            assert!(sysctls(&fixture(name, value, false).pod).is_err(), "{name}");
        }
    }
}
