//! Looks for what a world left behind: links, mounts, cgroups, rules, processes, files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::netns::Netns;

/// What belonged to a world and must be gone.
#[derive(Clone, Debug)]
pub(crate) struct Traces<'a> {
    pub(crate) netns: &'a Netns,
    /// Links that may stay (loopback, bridges, up-links).
    pub(crate) links: &'a [&'a str],
    pub(crate) directories: &'a [&'a Path],
    /// Daemon and registry.
    pub(crate) processes: &'a [u32],
    /// Below every hierarchy.
    pub(crate) cgroup: &'a str,
    /// Ids of pods and containers.
    pub(crate) ids: &'a BTreeSet<String>,
    /// Addresses of pods.
    pub(crate) addresses: &'a BTreeSet<String>,
}

impl Traces<'_> {
    /// Waits until nothing is left (the kernel clears namespaces in the background), at most `limit`.
    /// Returns what is left then.
    pub(crate) fn wait_gone(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        loop {
            let left = self.find();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What there is now.
    pub(crate) fn find(&self) -> Vec<String> {
        let mut left = self.links();
        left.extend(self.mounts());
        left.extend(self.processes());
        left.extend(self.rules());
        for hierarchy in hierarchies() {
            self.cgroups(&hierarchy.join(self.cgroup.trim_start_matches('/')), &mut left);
        }
        for directory in self.directories {
            self.files(directory, 0, &mut left);
        }
        left
    }

    fn links(&self) -> Vec<String> {
        let text = self.netns.ip("-o link");
        text.lines()
            .filter_map(|line| line.split(": ").nth(1))
            .map(|name| name.split('@').next().unwrap_or(name))
            .filter(|name| !self.links.contains(name))
            .map(|name| format!("link {name}"))
            .collect()
    }

    fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|target| self.is_ours(target))
            .map(|target| format!("mount {target}"))
            .collect()
    }

    fn is_ours(&self, text: &str) -> bool {
        self.directories.iter().any(|directory| text.contains(&format!("{}/", directory.display())))
            || self.ids.iter().any(|id| text.contains(id.as_str()))
    }

    fn processes(&self) -> Vec<String> {
        let mut left = Vec::new();
        let own = std::process::id();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if pid == own || pid == 1 || self.processes.contains(&pid) {
                continue;
            }
            let path = entry.path();
            let text = |name: &str| {
                String::from_utf8_lossy(&std::fs::read(path.join(name)).unwrap_or_default())
                    .replace('\0', " ")
            };
            let cwd = std::fs::read_link(path.join("cwd")).unwrap_or_default();
            let command = text("cmdline");
            if self.is_ours(&command)
                || self.is_ours(&format!("{}/", cwd.display()))
                || text("cgroup").contains(&format!(":{}/", self.cgroup))
            {
                left.push(format!("process {pid}: {command} (in {})", cwd.display()));
            }
        }
        left
    }

    fn rules(&self) -> Vec<String> {
        let rules = self.netns.command("nft", &["list", "ruleset"]);
        rules
            .lines()
            .flat_map(|line| {
                let words: Vec<&str> =
                    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == ':')).collect();
                self.addresses
                    .iter()
                    .filter(|address| words.contains(&address.as_str()))
                    .map(|address| format!("rule for {address}: {}", line.trim()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn cgroups(&self, directory: &Path, left: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        let name = directory.to_string_lossy();
        if self.ids.iter().any(|id| name.contains(id.as_str())) {
            left.push(format!("cgroup {name}"));
        } else if !std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().is_empty() {
            left.push(format!("cgroup {name} has processes"));
        }
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.cgroups(&entry.path(), left);
            }
        }
    }

    /// Files named after a pod or a container. Image content is deep and carries no such names.
    fn files(&self, directory: &Path, depth: usize, left: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.ids.iter().any(|id| name.contains(id.as_str())) {
                left.push(format!("file {}", entry.path().display()));
            } else if depth < 5 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.files(&entry.path(), depth + 1, left);
            }
        }
    }
}

/// The mount points of all cgroup hierarchies.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    std::fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let target = words.next()?;
            matches!(words.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(target))
        })
        .collect()
}

/// Removes a cgroup with its children. Processes in it must be dead or dying.
pub(crate) fn remove_cgroup(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while std::fs::remove_dir(directory).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}
