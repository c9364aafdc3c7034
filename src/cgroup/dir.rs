//! One cgroup, in all hierarchies: making, reading, emptying, removing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Mode, is_v2};
use crate::error::{Classify, Kind};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of a cgroup could not be used.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A value that a cgroup can't have.
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Processes that don't go away.
    #[error("{count} processes of cgroup {path} are still there {waited:?} after they were killed", path = path.display())]
    NotEmpty {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        count: usize,
        /// How long we waited.
        waited: Duration,
    },
    /// The cgroup is not there in any hierarchy.
    #[error("no cgroup {path}", path = path.display())]
    NotFound {
        /// The cgroup.
        path: PathBuf,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::NotEmpty { .. } => Kind::DeadlineExceeded,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Io { source, .. } => match source.raw_os_error() {
                // ENOSPC: a cpuset would be left without processors or memory nodes; E2BIG: a list is too long.
                Some(libc::EINVAL | libc::ERANGE | libc::ENOSPC | libc::E2BIG) => Kind::InvalidArgument,
                // ENOENT, ENODEV: the cgroup ended meanwhile with its container, or this kernel has no such limit.
                Some(libc::EBUSY | libc::ENOENT | libc::ENODEV) => Kind::FailedPrecondition,
                _ => Kind::Internal,
            },
        }
    }
}

/// How often the kernel's out-of-memory killer was at work.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OomCounts {
    /// Times the cgroup was out of memory (v2 only).
    pub oom: u64,
    /// Processes killed for it.
    pub oom_kill: u64,
}

/// One cgroup: a directory in each hierarchy. It need not exist.
#[derive(Clone, Debug)]
pub struct Cgroup {
    mode: Mode,
    path: PathBuf,
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroup of a path relative to the mount points (see [`super::Naming::container_path`]).
    pub fn new(mode: Mode, path: &Path) -> Self {
        // Only names: neither a leading slash nor `..` leads out of the hierarchy.
        let path: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let directories = mode.hierarchies().into_iter().map(|h| h.join(&path)).collect();
        Self { mode, path, directories }
    }

    /// Its path relative to the mount points.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// v1, v2 or both.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        !self.path.as_os_str().is_empty() && self.directories.iter().any(|d| d.is_dir())
    }

    /// The directory that holds a controller's files.
    pub(super) fn directory(&self, controller: &str) -> PathBuf {
        let root = Path::new(super::ROOT);
        match self.mode {
            Mode::Unified => root.join(&self.path),
            Mode::Legacy | Mode::Hybrid => root.join(controller).join(&self.path),
        }
    }

    /// Makes it, with its parents, in all hierarchies; on v2 all controllers are passed down to it. It is no error when
    /// it is there.
    pub fn create(&self) -> Result<(), Error> {
        for directory in &self.directories {
            std::fs::create_dir_all(directory).map_err(io_error("making", directory))?;
        }
        if self.mode == Mode::Unified {
            let mut at = PathBuf::from(super::ROOT);
            for component in self.path.components() {
                delegate(&at)?;
                at.push(component);
            }
        } else {
            self.inherit_cpuset()?;
        }
        Ok(())
    }

    /// On v1 a cpuset begins empty, and no process can enter an empty one.
    fn inherit_cpuset(&self) -> Result<(), Error> {
        let mut at = Path::new(super::ROOT).join("cpuset");
        if !at.is_dir() {
            return Ok(());
        }
        for component in self.path.components() {
            let parent = at.clone();
            at.push(component);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if read(&at.join(file))?.trim().is_empty() {
                    write(&at.join(file), read(&parent.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Removes it and the cgroups in it, none of which may have processes. It is no error when it is gone.
    pub fn remove(&self) -> Result<(), Error> {
        if self.path.as_os_str().is_empty() {
            return Ok(()); // the root is nobody's to remove
        }
        let mut first = Ok(());
        for directory in &self.directories {
            // One hierarchy's refusal does not keep the others.
            first = first.and(remove_tree(directory));
        }
        first
    }

    /// The processes in it and below it.
    pub fn pids(&self) -> Result<BTreeSet<u32>, Error> {
        let mut pids = BTreeSet::new();
        for directory in self.process_directories() {
            walk(&directory, &mut |at| {
                let found = match read(&at.join("cgroup.procs")) {
                    // cgroup-v2.rst, "Threads": that of a threaded cgroup can't be read. Its processes are in the one above.
                    Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                        return Ok(());
                    }
                    found => found?,
                };
                pids.extend(found.lines().filter_map(|line| line.parse::<u32>().ok()));
                Ok(())
            })?;
        }
        pids.remove(&0); // a process of another PID namespace that we can't see
        Ok(pids)
    }

    /// Hierarchies that the OCI runtime puts the container's processes in: all of v1's. Every process is in each, one
    /// would do, but a hierarchy may lack the directory.
    fn process_directories(&self) -> Vec<PathBuf> {
        self.directories.iter().filter(|d| d.is_dir()).cloned().collect()
    }

    /// Kills every process in it and below it, and waits until they are gone, at most so long.
    ///
    /// v2 has a file for it that no fork can outrun (kernel 5.14). On v1 rounds of kills are made until a round finds
    /// nobody. It blocks: call it where that is allowed.
    pub fn kill(&self, deadline: Duration) -> Result<(), Error> {
        if self.path.as_os_str().is_empty() {
            return Err(Error::Invalid {
                field: "cgroup",
                value: "/".to_owned(),
                reason: "is the root: it holds every process of the machine",
            });
        }
        let began = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let by_kernel = self.directories.iter().filter(|d| is_v2(d)).any(|d| {
                let file = d.join("cgroup.kill");
                file.exists() && std::fs::write(file, "1").is_ok()
            });
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if !by_kernel || self.mode != Mode::Unified {
                let own = std::process::id();
                for pid in pids.iter().filter(|pid| **pid != own) {
                    // Gone already is what we want.
                    if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
            }
            let waited = began.elapsed();
            if waited >= deadline {
                return Err(Error::NotEmpty { path: self.path.clone(), count: pids.len(), waited });
            }
            std::thread::sleep(pause.min(deadline.saturating_sub(waited)));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// How often memory ran out in it or below it.
    pub fn oom_counts(&self) -> Result<OomCounts, Error> {
        let (file, oom) = match self.mode {
            Mode::Unified => ("memory.events", "oom"),
            Mode::Legacy | Mode::Hybrid => ("memory.oom_control", ""),
        };
        let text = read(&self.directory("memory").join(file))?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
        };
        Ok(OomCounts { oom: if oom.is_empty() { 0 } else { value(oom) }, oom_kill: value("oom_kill") })
    }
}

/// Passes all controllers of a v2 cgroup on to those in it. One that can't be passed on must not keep the others.
fn delegate(directory: &Path) -> Result<(), Error> {
    let file = directory.join("cgroup.subtree_control");
    let have = read(&file)?;
    for controller in read(&directory.join("cgroup.controllers"))?.split_whitespace() {
        if !have.split_whitespace().any(|c| c == controller) {
            let _ = std::fs::write(&file, format!("+{controller}"));
        }
    }
    Ok(())
}

/// Calls for a cgroup and all below it, deepest last. What vanishes meanwhile is passed over.
fn walk(directory: &Path, visit: &mut impl FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
    visit(directory)?;
    for child in children(directory)? {
        walk(&child, visit)?;
    }
    Ok(())
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(io_error("listing", directory)(source)),
    };
    let directories = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    Ok(directories.map(|e| e.path()).collect())
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    // Right after the last process's end the kernel may still be busy with the cgroup.
    let mut pause = Duration::from_millis(1);
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && pause < Duration::from_millis(64) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(source) => return Err(io_error("removing", directory)(source)),
        }
    }
}

/// Reads a file of a cgroup; what is gone is empty.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Err(error) if is_gone(&error) => Ok(String::new()),
        result => result.map_err(io_error("reading", path)),
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), Error> {
    // Not fs::write, which would make the file where there is no such controller.
    let open = std::fs::OpenOptions::new().write(true).open(path);
    open.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(io_error("writing", path))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_limit_of_a_cgroup_that_ended_is_no_fault_of_ours() {
        let gone = tempfile::tempdir().unwrap().path().join("cpu.shares");
        let error = write(&gone, "2").unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("cpu.shares"), "{error}");
    }
}
