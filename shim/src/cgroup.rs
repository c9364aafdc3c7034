//! The container's cgroup as directories: one on cgroup v2, one a hierarchy on v1.
//!
//! Where they are is read from `/proc/<init>/cgroup` after creation, whatever runtime made them and whatever the driver's
//! naming; a hierarchy in which the container sits where the shim sits is not the container's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sys;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
struct Hierarchy {
    mount: PathBuf,
    root: String,
    controllers: Vec<String>,
    unified: bool,
}

fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mut list = Vec::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mount)) = (left.next(), left.next()) else { continue };
        let controllers = right.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
        let unified = kind == "cgroup2";
        list.push(Hierarchy { mount: PathBuf::from(mount), root: root.to_owned(), controllers, unified });
    }
    Ok(list)
}

fn membership(pid: &str) -> io::Result<Vec<(String, String)>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        })
        .collect())
}

/// The directories that are process `pid`'s own, not shared with the caller's.
pub(crate) fn directories_of(pid: i32, own: &[(String, String)]) -> io::Result<Vec<PathBuf>> {
    let hierarchies = hierarchies()?;
    let mut list = Vec::new();
    for entry in membership(&pid.to_string())? {
        if own.contains(&entry) || entry.1 == "/" {
            continue;
        }
        let (controllers, path) = &entry;
        let found = hierarchies.iter().find(|hierarchy| {
            if controllers.is_empty() {
                hierarchy.unified
            } else {
                !hierarchy.unified
                    && controllers.split(',').all(|name| hierarchy.controllers.iter().any(|has| has == name))
            }
        });
        if let Some(hierarchy) = found {
            let relative = path.strip_prefix(hierarchy.root.trim_end_matches('/')).unwrap_or(path);
            list.push(hierarchy.mount.join(relative.trim_start_matches('/')));
        }
    }
    Ok(list)
}

/// Where the calling process sits.
pub(crate) fn own_membership() -> io::Result<Vec<(String, String)>> {
    membership("self")
}

/// The directory with the given v1 controller file, or the v2 one.
pub(crate) fn with_file(directories: &[PathBuf], file: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(file)).find(|path| path.exists())
}

/// How many processes the kernel killed in this cgroup for lack of memory.
pub(crate) fn oom_kills(directories: &[PathBuf]) -> u64 {
    ["memory.events", "memory.oom_control"]
        .iter()
        .filter_map(|file| with_file(directories, file))
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| killed(&text))
        .sum()
}

/// The counter in the text of `memory.events` or `memory.oom_control`.
pub(crate) fn killed(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Every process in the cgroup and below it.
pub(crate) fn processes(directory: &Path) -> Vec<i32> {
    let mut list: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(directory) {
        list.extend(processes(&child));
    }
    list
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The directory whose members are killed together: v2, or on v1 one hierarchy that every runtime uses.
pub(crate) fn for_killing(directories: &[PathBuf]) -> Option<&PathBuf> {
    directories
        .iter()
        .find(|directory| directory.join("cgroup.kill").exists())
        .or_else(|| directories.iter().find(|directory| directory.join("pids.max").exists()))
        .or_else(|| directories.first())
}

/// Sends a signal to everything in the cgroup. SIGKILL is repeated until nobody is left that could fork, for at most `limit`.
pub(crate) fn signal_all(directory: &Path, signal: i32, limit: Duration) -> usize {
    if signal == libc::SIGKILL && fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return 1;
    }
    let deadline = Instant::now() + limit;
    let mut signalled = 0;
    loop {
        let list = processes(directory);
        for pid in &list {
            if *pid > 0 && sys::kill(*pid, signal).is_ok() {
                signalled += 1;
            }
        }
        if signal != libc::SIGKILL || list.is_empty() || Instant::now() >= deadline {
            return signalled;
        }
        sleep(Duration::from_millis(1));
    }
}

/// Kills everything in the container's cgroup, for at most `limit`, the frozen as well.
pub(crate) fn kill_all(directories: &[PathBuf], limit: Duration) {
    let Some(directory) = for_killing(directories) else { return };
    if is_frozen_on_v1(directories) {
        signal_all(directory, libc::SIGKILL, Duration::ZERO);
        thaw_killed(directories);
    }
    signal_all(directory, libc::SIGKILL, limit);
}

/// Lets those die that were sent SIGKILL: on v1 a frozen process first has to be thawed, and then does nothing else (kernel
/// documentation, cgroup-v1/freezer-subsystem.rst).
pub(crate) fn thaw_killed(directories: &[PathBuf]) {
    if is_frozen_on_v1(directories) {
        let _ = freeze(directories, false);
    }
}

fn is_frozen_on_v1(directories: &[PathBuf]) -> bool {
    with_file(directories, "freezer.state")
        .and_then(|path| fs::read_to_string(path).ok())
        .is_some_and(|state| state.trim() != "THAWED")
}

/// Moves everybody in the cgroup and below it to `target`. Says whether nobody is left: who forks faster than that stays.
pub(crate) fn move_all(directory: &Path, target: &Path) -> bool {
    const ROUNDS: usize = 16;
    let procs = target.join("cgroup.procs");
    for _ in 0..ROUNDS {
        let list = processes(directory);
        if list.is_empty() {
            return true;
        }
        for pid in list {
            // Who has just ended can't be moved.
            let _ = fs::write(&procs, pid.to_string());
        }
    }
    false
}

/// Removes the directory and what is below it, as long as nobody is in it; waits a little for those who are just leaving.
pub(crate) fn remove(directory: &Path, deadline: Instant) -> io::Result<()> {
    for child in children(directory) {
        remove(&child, deadline)?;
    }
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Stops or continues every process of the container. Returns when the kernel has begun to.
pub(crate) fn freeze(directories: &[PathBuf], frozen: bool) -> io::Result<()> {
    if let Some(path) = with_file(directories, "freezer.state") {
        return fs::write(path, if frozen { "FROZEN" } else { "THAWED" });
    }
    match with_file(directories, "cgroup.freeze") {
        Some(path) => fs::write(path, if frozen { "1" } else { "0" }),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "the container has no freezer")),
    }
}

/// Writes process `pid` (0 is the caller) into every directory.
pub(crate) fn join(directories: &[PathBuf], pid: i32) -> io::Result<()> {
    for directory in directories {
        let path = directory.join("cgroup.procs");
        fs::write(&path, pid.to_string())
            .map_err(|error| io::Error::new(error.kind(), format!("writing {}: {error}", path.display())))?;
    }
    Ok(())
}

/// Moves the calling process to where it is, in one v1 hierarchy.
pub(crate) fn rejoin() -> io::Result<()> {
    let hierarchies = hierarchies()?;
    for (controllers, path) in own_membership()? {
        let found = hierarchies.iter().find(|hierarchy| {
            !hierarchy.unified && !controllers.is_empty() && hierarchy.controllers.contains(&controllers)
        });
        if let Some(hierarchy) = found {
            let relative = path.strip_prefix(hierarchy.root.trim_end_matches('/')).unwrap_or(&path);
            let directory = hierarchy.mount.join(relative.trim_start_matches('/'));
            return fs::write(directory.join("cgroup.procs"), "0");
        }
    }
    Ok(())
}

/// Whether the machine has cgroup v2 alone.
pub(crate) fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Makes the directories above `path` in the v2 hierarchy. Others may make the same ones at the same time.
pub(crate) fn make_parents_unified(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let relative = parent.strip_prefix("/").unwrap_or(parent);
    for hierarchy in hierarchies()?.into_iter().filter(|hierarchy| hierarchy.unified) {
        fs::create_dir_all(hierarchy.mount.join(relative))?;
    }
    Ok(())
}

/// Makes the cgroup `path` in all hierarchies with controllers, ready for processes, and returns its directories.
pub(crate) fn create(path: &Path) -> io::Result<Vec<PathBuf>> {
    if let Some(root) = hierarchies()?.into_iter().find(|hierarchy| hierarchy.unified && unified()) {
        let mut directory = root.mount;
        for part in path.strip_prefix("/").unwrap_or(path) {
            // Controllers that can't be enabled are missed when a limit wants them.
            let there = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
            for name in there.split_whitespace() {
                let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{name}"));
            }
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        return Ok(vec![directory]);
    }
    let mut list: Vec<PathBuf> = Vec::new();
    for (_, directory) in make(path)? {
        if !list.contains(&directory) {
            // A cpuset that is empty takes nobody in.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&directory, file)?;
            }
            list.push(directory);
        }
    }
    Ok(list)
}

/// Gives an empty file of a v1 cgroup the value of the cgroup above, and that one before where it is empty as well.
fn inherit(directory: &Path, file: &str) -> io::Result<()> {
    let path = directory.join(file);
    let Ok(value) = fs::read_to_string(&path) else { return Ok(()) };
    let Some(above) = directory.parent().filter(|_| value.trim().is_empty()) else { return Ok(()) };
    inherit(above, file)?;
    fs::write(&path, fs::read_to_string(above.join(file))?)
}

/// Makes the directory `path` in every v1 hierarchy with controllers. Gives each with the name of its mount point; one that is
/// mounted for several controllers comes once more under each of their names.
pub(crate) fn make(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut list = Vec::new();
    for hierarchy in hierarchies()? {
        let Some(name) = hierarchy.mount.file_name().and_then(|name| name.to_str()) else { continue };
        let named = hierarchy.controllers.iter().any(|option| option.starts_with("name="));
        if hierarchy.unified || named || !hierarchy.mount.starts_with("/sys/fs/cgroup") {
            continue;
        }
        let directory = hierarchy.mount.join(relative);
        fs::create_dir_all(&directory)?;
        list.push((name.to_owned(), directory.clone()));
        let parts = name.split(',').filter(|part| name.contains(',') && !part.is_empty());
        list.extend(parts.map(|part| (part.to_owned(), directory.clone())));
    }
    Ok(list)
}
