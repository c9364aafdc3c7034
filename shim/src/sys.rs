//! The few system calls that need `unsafe`, each behind a function that is safe to call from the shim's only thread.
#![allow(unsafe_code)]

mod keyring;
mod mount;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(crate) use keyring::leave_session_keyring;
pub(crate) use mount::{make_read_only, mount_setattr};

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The parent, with the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_int(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks. The shim has one thread, so the child may do anything.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process is single-threaded: no lock can be held by a thread that does not exist in the child.
    match check_int(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Forks a sibling: the child's parent is the caller's parent (`CLONE_PARENT`).
pub(crate) fn fork_sibling() -> io::Result<Fork> {
    // SAFETY: raw clone without a new stack behaves as fork; the process is single-threaded and the child goes on to
    // exec or _exit.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) })?;
    match i32::try_from(pid).unwrap_or(-1) {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// A child that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    /// Its process id.
    pub(crate) pid: i32,
    /// Its exit code, or 128 and the signal.
    pub(crate) code: i32,
    /// The signal that ended it, or 0.
    pub(crate) signal: i32,
}

/// Reaps one ended child, if there is one.
pub(crate) fn reap() -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
    let code = if signal != 0 { 128 + signal } else { libc::WEXITSTATUS(status) };
    Some(Reaped { pid, code, signal })
}

/// Waits for one file descriptor out of many; `None` waits without end.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<i32>) -> io::Result<usize> {
    let count = libc::nfds_t::try_from(fds.len()).unwrap_or(libc::nfds_t::MAX);
    // SAFETY: pointer and length are those of the slice.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout_ms.unwrap_or(-1)) };
    match check_int(ready) {
        Ok(ready) => Ok(usize::try_from(ready).unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) => Err(error),
    }
}

/// Takes over a descriptor that was passed to this process by its parent.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the number is open.
    check_int(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: open, and nothing else in this process owns the number: it came from the parent.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: fd is open.
    check_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// Duplicates to a number of at least 10, so that a later `dup2` onto 0 to 2 can't hit it. Closed on exec.
pub(crate) fn dup_high(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain fcntl; the result is a fresh descriptor that only we own.
    let new = check_int(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) })?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Leaves a descriptor open, by its number, in the programs that this process starts.
pub(crate) fn keep_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD touches no memory.
    check_int(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(|_| ())
}

/// `dup2`: the target stays open across exec.
pub(crate) fn dup_onto(fd: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: plain dup2; the targets used are 0, 1 and 2, owned by nobody.
    check_int(unsafe { libc::dup2(fd, target) }).map(|_| ())
}

/// Sets or clears `O_NONBLOCK`.
pub(crate) fn set_nonblocking(fd: RawFd, on: bool) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL touch no memory.
    let flags = check_int(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: as above.
    check_int(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }).map(|_| ())
}

/// Closes everything but 0 to 2 and `keep`.
pub(crate) fn close_others(keep: &[RawFd]) {
    let mut keep: Vec<libc::c_uint> =
        keep.iter().filter(|fd| **fd > 2).filter_map(|fd| libc::c_uint::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep {
        if fd > from {
            // SAFETY: only used in a forked child that does not use the descriptors it closes.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd + 1;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, 0) };
}

/// Resets every signal to its default and unblocks all: what a program expects to be started with.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is always a valid disposition; those that can't be changed are refused harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is valid, and sigemptyset initialises it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Lets the program that `command` starts begin with default signals, whatever this process ignores.
pub(crate) fn start_with_default_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let reset = || {
        default_signals();
        Ok(())
    };
    // SAFETY: what runs between fork and exec only changes signals, which is allowed there.
    unsafe { command.pre_exec(reset) };
}

/// Gives the program that `command` starts these descriptors as 3, 4 and 5.
pub(crate) fn start_with_descriptors(command: &mut std::process::Command, fds: [RawFd; 3]) {
    use std::os::unix::process::CommandExt;
    let pass = move || {
        // None of them may be where another one goes: first out of the way.
        let mut high = [0; 3];
        for (high, fd) in high.iter_mut().zip(fds) {
            // SAFETY: plain fcntl; what it makes is closed with the exec.
            *high = check_int(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) })?;
        }
        for (fd, target) in high.into_iter().zip(3..) {
            // SAFETY: plain dup2, in a child that goes on to exec and uses nothing it may replace.
            check_int(unsafe { libc::dup2(fd, target) })?;
        }
        Ok(())
    };
    // SAFETY: what runs between fork and exec only duplicates descriptors, which is allowed there.
    unsafe { command.pre_exec(pass) };
}

/// Ignores a signal.
pub(crate) fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A non-blocking descriptor that becomes readable when a child ends; the signal is blocked.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check_int(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = check_int(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A non-blocking event descriptor.
pub(crate) fn event_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: integer arguments; the result is a fresh descriptor that nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(check_int(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?)) }
}

/// Makes this process adopt the orphans among its descendants.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: prctl with integer arguments.
    check_int(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(|_| ())
}

/// Gives unused heap pages back.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only releases free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A descriptor on a process.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integer arguments; the result is a fresh descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: fresh, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Sends a signal to the process that `process` is open on.
pub(crate) fn pidfd_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integer arguments and a null pointer, which stands for what kill(2) would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, information, 0) })
        .map(|_| ())
}

/// Joins the namespaces of the process that `fd` is open on.
pub(crate) fn setns(fd: RawFd, flags: i32) -> io::Result<()> {
    // SAFETY: integer arguments.
    check_int(unsafe { libc::setns(fd, flags) }).map(|_| ())
}

/// `unshare`.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: integer arguments.
    check_int(unsafe { libc::unshare(flags) }).map(|_| ())
}

/// Sets the terminal's size.
pub(crate) fn resize_terminal(fd: RawFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` outlives the call.
    check_int(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(|_| ())
}

/// Makes the terminal on `fd` the controlling one.
pub(crate) fn set_controlling_terminal(fd: RawFd) -> io::Result<()> {
    // SAFETY: integer arguments.
    check_int(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) }).map(|_| ())
}

/// Reads and sets one resource limit of this process.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call.
    check_int(unsafe { libc::prlimit64(0, resource, &raw const limit, std::ptr::null_mut()) }).map(|_| ())
}

/// The soft and the hard value of one resource limit.
pub(crate) fn get_rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    check_int(unsafe { libc::prlimit64(0, resource, std::ptr::null(), &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `execve`; returns only on failure.
pub(crate) fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays are null-terminated and their strings live until the call returns.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Whether the calling process (by its effective ids) may execute `path`.
pub(crate) fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is null-terminated.
    check_int(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) })
        .map(|_| ())
}

/// Sends a signal.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integer arguments.
    check_int(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// A set of signals.
pub(crate) struct Signals(libc::sigset_t);

/// Blocks signals, for [`wait_signal`].
pub(crate) fn block_signals(signals: &[i32]) -> Signals {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        Signals(set)
    }
}

/// Sleeps until one of the blocked signals comes.
pub(crate) fn wait_signal(signals: &Signals) -> i32 {
    // SAFETY: the set was initialised by `block_signals`.
    unsafe { libc::sigwaitinfo(&raw const signals.0, std::ptr::null_mut()) }
}

/// Closes every descriptor of this process, standard streams included.
pub(crate) fn close_all() {
    // SAFETY: only used by a process that touches no descriptor afterwards.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
}

/// Opens `/dev/null` as `fd` when nothing is open there.
pub(crate) fn ensure_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD only asks whether the number is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
        return Ok(());
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    if null.as_raw_fd() == fd {
        std::mem::forget(null);
        return Ok(());
    }
    dup_onto(null.as_raw_fd(), fd)
}

/// Installs a seccomp filter, a whole number of 8-byte instructions, in the calling thread.
pub(crate) fn install_filter(flags: u32, program: &[u8]) -> io::Result<()> {
    // Copied because the kernel wants instructions aligned.
    let instructions: Vec<u64> = program
        .chunks_exact(8)
        .map(|bytes| {
            u64::from_ne_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ])
        })
        .collect();
    let filter = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `filter` points to `len` instructions of 8 bytes that outlive the call; the kernel checks their content.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    })
    .map(|_| ())
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` and attaches it to the cgroup v2 directory, beside what is there.
pub(crate) fn attach_device_program(directory: BorrowedFd<'_>, program: &[[u8; 8]]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }

    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }

    // The kernel wants instructions aligned to 8 bytes.
    let instructions: Vec<u64> = program.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let address = |pointer: *const u8| u64::try_from(pointer.addr()).unwrap_or_default();
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF));
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: address(instructions.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        ..Default::default()
    };
    // SAFETY: `load` has the layout of the kernel's union for this command and its given size; what it points to outlives the call.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })?;
    // SAFETY: fresh, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) };
    let attach = Attach {
        target: number(directory.as_raw_fd())?,
        program: number(fd.as_raw_fd())?,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above. The cgroup keeps the program; our descriptor may go.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) })
        .map(|_| ())
}
