//! What the C library must be told directly.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that can be waited for until there is something to read from it, as from that of a process that has ended.
///
/// # Errors
/// The kernel knows no waiting for it.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is owned, and nobody else has it: it stays open, and the same file, for as long as what is returned lives.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Makes a mount that is open as `tree` read-only (mount_setattr(2), Linux 5.12, which no crate of ours wraps).
///
/// # Errors
/// The kernel refuses.
pub(crate) fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is null-terminated; `attributes` has the layout and size the kernel is told, and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether somebody keeps the machine's clock right (adjtimex(2)).
///
/// # Errors
/// The kernel refuses to tell.
pub(crate) fn clock_is_kept() -> io::Result<bool> {
    // SAFETY: all of the structure are integers, for which zero is a value; no bit of `modes` is set, so nothing is changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call, which writes no further than its size.
    let result = unsafe { libc::adjtimex(&raw mut state) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// Makes the heap give back what it no longer needs. A pull moves hundreds of megabytes through buffers on many threads;
/// glibc's defaults (eight arenas a core, thresholds that grow with use) would keep tens of them for good.
///
/// Two arenas, and 128 KiB as the fixed bound from which blocks are mapped, and a free top is returned (mallopt(3)).
#[cfg(target_env = "gnu")]
pub fn bound_heap() {
    const BOUND: libc::c_int = 128 << 10;
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, BOUND), (libc::M_TRIM_THRESHOLD, BOUND)]
    {
        // SAFETY: mallopt only sets a parameter of the allocator. It is called before other threads are started.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other C libraries' heaps have no such parameters.
#[cfg(not(target_env = "gnu"))]
pub fn bound_heap() {}
