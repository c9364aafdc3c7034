//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::time::Duration;

use nix::unistd::{ForkResult, Pid};

/// Forks. Returns the child's id in the parent, `None` in the child.
///
/// # Panics
/// When the process has more than one thread, or can't fork.
pub(crate) fn fork() -> Option<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert_eq!(threads, 1, "fork with threads running");
    // SAFETY: the process has a single thread (checked above), so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => None,
    }
}

/// The CPU-time clock of a process; zero when it has ended.
pub(crate) fn process_clock(pid: u32) -> Duration {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let pid = pid.try_into().unwrap();
    // SAFETY: both pointers are to locals that outlive the calls; the clock is read only if the first call filled it.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}
