//! On the machine's own cgroups, in a directory of our own name that is removed at the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::proto::runtime::v1::LinuxContainerResources;

/// A cgroup that is removed with its processes, whatever happens.
struct Made(Cgroup);

impl Made {
    fn new(name: &str) -> Self {
        let path = format!("berth-spec-test-{}-{name}/child", std::process::id());
        let cgroup = Cgroup::new(Mode::detect(), Path::new(&path));
        cgroup.create().unwrap();
        Self(cgroup)
    }

    fn child(&self) -> Child {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        for directory in self.0.mode().hierarchies() {
            let file = directory.join(self.0.path()).join("cgroup.procs");
            std::fs::write(file, child.id().to_string()).unwrap();
        }
        child
    }

    fn file(&self, controller: &str, name: &str) -> String {
        dir::read(&self.0.directory(controller).join(name)).unwrap().trim().to_owned()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.0.kill(Duration::from_secs(5));
        let parent = self.0.path().parent().unwrap().to_path_buf();
        Cgroup::new(self.0.mode(), &parent).remove().unwrap();
    }
}

#[test]
fn made_twice_and_removed_twice() {
    let made = Made::new("twice");
    made.0.create().unwrap();
    assert!(made.0.exists());
    assert_eq!(made.0.pids().unwrap().len(), 0);
    assert_eq!(made.0.oom_counts().unwrap(), OomCounts::default());
    made.0.remove().unwrap();
    made.0.remove().unwrap();
    assert!(!made.0.exists());
    assert_eq!(made.0.pids().unwrap().len(), 0);
    made.0.kill(Duration::from_secs(1)).unwrap();
}

#[test]
fn kills_everybody() {
    let made = Made::new("kill");
    let mut children = [made.child(), made.child()];
    let parent = Cgroup::new(made.0.mode(), made.0.path().parent().unwrap());
    assert_eq!(parent.pids().unwrap(), children.iter().map(Child::id).collect());
    // A cgroup with processes is not removed.
    assert!(made.0.remove().is_err());
    let waiter =
        std::thread::spawn(move || children.iter_mut().map(|c| c.wait().unwrap().code()).collect::<Vec<_>>());
    parent.kill(Duration::from_secs(10)).unwrap();
    assert_eq!(waiter.join().unwrap(), [None, None]);
    assert_eq!(parent.pids().unwrap().len(), 0);
}

#[test]
fn the_root_is_safe() {
    let root = Cgroup::new(Mode::detect(), Path::new("/.."));
    assert!(root.kill(Duration::from_millis(1)).is_err());
    root.remove().unwrap();
    assert!(!root.exists());
}

#[test]
fn paths_stay_inside() {
    let cgroup = Cgroup::new(Mode::detect(), Path::new("/../a/../../b"));
    assert_eq!(cgroup.path(), Path::new("a/b"));
}

/// A container that may write its cgroup can make threaded ones in it, whose processes can't be read.
#[test]
fn threads_apart_keep_nothing() {
    let made = Made::new("threads");
    let hierarchies = made.0.mode().hierarchies();
    let Some(v2) = hierarchies.iter().find(|hierarchy| is_v2(hierarchy)) else { return };
    let threads = v2.join(made.0.path()).join("threads");
    std::fs::create_dir(&threads).unwrap();
    if let Err(error) = std::fs::write(threads.join("cgroup.type"), "threaded") {
        eprintln!("skipped: no threaded cgroup here: {error}");
        return;
    }
    std::fs::read_to_string(threads.join("cgroup.procs")).unwrap_err();
    let mut child = made.child();
    assert_eq!(made.0.pids().unwrap(), [child.id()].into());
    let waiter = std::thread::spawn(move || child.wait().unwrap().code());
    made.0.kill(Duration::from_secs(10)).unwrap();
    assert_eq!(waiter.join().unwrap(), None);
    made.0.remove().unwrap();
    assert!(!made.0.exists());
}

#[test]
fn limits_up_and_down() {
    let made = Made::new("limits");
    let unified = made.0.mode() == Mode::Unified;
    const MEGABYTE: i64 = 1 << 20;
    for limit in [64, 32, 128] {
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: limit * MEGABYTE,
            memory_swap_limit_in_bytes: limit * MEGABYTE,
            cpu_period: 50_000,
            cpu_quota: limit * 1000,
            cpu_shares: limit,
            unified: [("pids.max".to_owned(), limit.to_string())].into(),
            ..Default::default()
        };
        update(&made.0, &resources).unwrap();
        let (file, cpu) =
            if unified { ("memory.max", "cpu.max") } else { ("memory.limit_in_bytes", "cpu.cfs_quota_us") };
        assert_eq!(made.file("memory", file), (limit * MEGABYTE).to_string());
        assert!(made.file("cpu", cpu).starts_with(&(limit * 1000).to_string()));
        assert_eq!(made.file("pids", "pids.max"), limit.to_string());
    }
    // Swap not said, limit above the old sum.
    let resources = LinuxContainerResources { memory_limit_in_bytes: 256 * MEGABYTE, ..Default::default() };
    update(&made.0, &resources).unwrap();
    // Nor here, and there was none: there is none after a cut.
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 * MEGABYTE, ..Default::default() };
    update(&made.0, &resources).unwrap();
    if made.0.directory("memory").join("memory.memsw.limit_in_bytes").exists() {
        assert_eq!(made.file("memory", "memory.memsw.limit_in_bytes"), (64 * MEGABYTE).to_string());
    }
    let cpus = made.file("cpuset", if unified { "cpuset.cpus.effective" } else { "cpuset.cpus" });
    assert!(!cpus.is_empty());
    let resources = LinuxContainerResources { cpuset_cpus: "0".into(), ..Default::default() };
    update(&made.0, &resources).unwrap();
    assert_eq!(made.file("cpuset", "cpuset.cpus"), "0");
}

#[test]
fn refused_limits() {
    let made = Made::new("refused");
    let one = |name: &str| LinuxContainerResources {
        unified: [(name.to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    for resources in [
        LinuxContainerResources { cpu_shares: -1, ..Default::default() },
        LinuxContainerResources { cpuset_cpus: "9999".into(), ..Default::default() },
        one("cgroup.procs"),
        one("../pids.max"),
        one("pids/max"),
    ] {
        assert!(update(&made.0, &resources).is_err(), "{resources:?}");
    }
    let gone = Cgroup::new(Mode::detect(), Path::new("berth-spec-test-none"));
    assert!(matches!(update(&gone, &LinuxContainerResources::default()), Err(Error::NotFound { .. })));
}

#[test]
fn weights() {
    for (shares, want) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1), (1 << 40, 10_000)] {
        assert_eq!(super::update::weight(shares), want);
    }
}

#[test]
fn this_machine() {
    let mode = Mode::detect();
    assert!(!mode.hierarchies().is_empty());
    assert!(mode.has_controller("memory"));
    assert!(!mode.has_controller("no-such"));
}
