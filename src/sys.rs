//! What the C library must be told directly.
#![allow(unsafe_code)]

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
