//! The system calls of the `RuntimeDefault` profile: what Docker's and containerd's published profiles allow, grouped by
//! what the calls are for. Names that a kernel or libseccomp does not know are skipped by whoever loads the filter.
//!
//! Not here, and so refused with EPERM: loading modules and kernels, mounting, keys, tracing of the kernel, clocks of
//! the host, swap, NUMA placement, `io_uring` (it walks around filters), `userfaultfd`, handles to files.

use oci_spec::runtime::Capability;

/// Allowed to everybody, whatever the arguments.
#[rustfmt::skip] // one call a line would be four hundred of them
pub(super) const ALWAYS: &[&[&str]] = &[
    // Files: opening, closing, reading, writing.
    &[
        "open", "openat", "openat2", "creat", "close", "close_range", "read", "write", "readv", "writev",
        "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "_llseek", "sendfile",
        "sendfile64", "splice", "tee", "vmsplice", "copy_file_range", "readahead", "fadvise64",
        "fadvise64_64", "cachestat", "fallocate", "truncate", "truncate64", "ftruncate", "ftruncate64",
        "sync", "syncfs", "fsync", "fdatasync", "sync_file_range", "flock", "fcntl", "fcntl64", "ioctl",
        "dup", "dup2", "dup3", "pipe", "pipe2",
    ],
    // Files: names, attributes, owners.
    &[
        "stat", "stat64", "lstat", "lstat64", "fstat", "fstat64", "fstatat64", "newfstatat", "statx",
        "statfs", "statfs64", "fstatfs", "fstatfs64", "access", "faccessat", "faccessat2", "link", "linkat",
        "symlink", "symlinkat", "readlink", "readlinkat", "unlink", "unlinkat", "rename", "renameat",
        "renameat2", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "chmod", "fchmod", "fchmodat",
        "fchmodat2", "chown", "chown32", "fchown", "fchown32", "fchownat", "lchown", "lchown32", "utime",
        "utimes", "futimesat", "utimensat", "utimensat_time64", "umask", "getdents", "getdents64", "getcwd",
        "chdir", "fchdir", "name_to_handle_at", "getxattr", "lgetxattr", "fgetxattr", "getxattrat",
        "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "listxattr", "llistxattr", "flistxattr",
        "listxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "file_getattr",
        "file_setattr",
    ],
    // Watching files.
    &["inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_mark"],
    // Waiting for many things.
    &[
        "poll", "ppoll", "ppoll_time64", "select", "_newselect", "pselect6", "pselect6_time64",
        "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_wait", "epoll_wait_old",
        "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2", "signalfd", "signalfd4", "timerfd_create",
        "timerfd_settime", "timerfd_settime64", "timerfd_gettime", "timerfd_gettime64",
    ],
    // Asynchronous input and output of the old kind.
    &[
        "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents",
        "io_pgetevents_time64",
    ],
    // Sockets; `socket` itself has a rule on its argument.
    &[
        "socketpair", "bind", "listen", "accept", "accept4", "connect", "shutdown", "send", "sendto",
        "sendmsg", "sendmmsg", "recv", "recvfrom", "recvmsg", "recvmmsg", "recvmmsg_time64", "getsockname",
        "getpeername", "getsockopt", "setsockopt", "socketcall",
    ],
    // Memory.
    &[
        "brk", "mmap", "mmap2", "munmap", "mremap", "mprotect", "madvise", "msync", "mincore", "mlock",
        "mlock2", "mlockall", "munlock", "munlockall", "mseal", "map_shadow_stack", "memfd_create",
        "memfd_secret", "remap_file_pages", "pkey_alloc", "pkey_free", "pkey_mprotect", "membarrier",
    ],
    // Processes and threads; `clone` and `clone3` have rules of their own.
    &[
        "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "waitpid", "getpid",
        "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "set_tid_address",
        "set_robust_list", "get_robust_list", "set_thread_area", "get_thread_area", "rseq", "prctl",
        "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
        "restart_syscall", "pause", "pidfd_open", "pidfd_send_signal", "process_mrelease", "ptrace",
        "process_vm_readv", "process_vm_writev",
    ],
    // Locks between threads.
    &["futex", "futex_time64", "futex_wait", "futex_wake", "futex_requeue", "futex_waitv"],
    // Signals.
    &[
        "kill", "tkill", "tgkill", "rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigsuspend",
        "rt_sigreturn", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
        "sigaltstack", "sigprocmask", "sigreturn",
    ],
    // Identity and capabilities: the kernel checks each.
    &[
        "getuid", "getuid32", "geteuid", "geteuid32", "getgid", "getgid32", "getegid", "getegid32",
        "getresuid", "getresuid32", "getresgid", "getresgid32", "getgroups", "getgroups32", "setuid",
        "setuid32", "setgid", "setgid32", "setreuid", "setreuid32", "setregid", "setregid32", "setresuid",
        "setresuid32", "setresgid", "setresgid32", "setfsuid", "setfsuid32", "setfsgid", "setfsgid32",
        "setgroups", "setgroups32", "capget", "capset", "lsm_get_self_attr", "lsm_set_self_attr",
        "lsm_list_modules",
    ],
    // Scheduling and limits.
    &[
        "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam",
        "sched_getscheduler", "sched_setscheduler", "sched_getattr", "sched_setattr",
        "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval",
        "sched_rr_get_interval_time64", "getpriority", "setpriority", "ioprio_get", "ioprio_set", "getrlimit",
        "ugetrlimit", "setrlimit", "prlimit64", "getrusage", "getcpu",
    ],
    // Time: reading, sleeping, timers; adjusting is checked by the kernel.
    &[
        "time", "times", "gettimeofday", "clock_gettime", "clock_gettime64", "clock_getres",
        "clock_getres_time64", "clock_nanosleep", "clock_nanosleep_time64", "nanosleep", "alarm", "getitimer",
        "setitimer", "timer_create", "timer_delete", "timer_gettime", "timer_gettime64", "timer_settime",
        "timer_settime64", "timer_getoverrun", "adjtimex", "clock_adjtime", "clock_adjtime64",
    ],
    // System V and POSIX inter-process communication: in a namespace.
    &[
        "ipc", "shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semctl", "semtimedop",
        "semtimedop_time64", "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_notify",
        "mq_getsetattr", "mq_timedsend", "mq_timedsend_time64", "mq_timedreceive", "mq_timedreceive_time64",
    ],
    // Facts about the system, and randomness.
    &["uname", "sysinfo", "getrandom"],
];

/// Allowed to who has the capability: the kernel would refuse everybody else anyway, so the less it has to decide the
/// better.
#[rustfmt::skip]
pub(super) const WITH: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            // Namespaces.
            "clone", "clone3", "unshare", "setns", "sethostname", "setdomainname",
            // Mounts.
            "mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "open_tree_attr",
            "fsopen", "fsconfig", "fsmount", "fspick", "statmount", "listmount", "quotactl", "quotactl_fd",
            // Watching the machine.
            "bpf", "perf_event_open", "fanotify_init", "lookup_dcookie", "syslog",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["init_module", "finit_module", "delete_module", "query_module"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["iopl", "ioperm"]),
    (Capability::SysTime, &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "set_mempolicy", "set_mempolicy_home_node", "mbind"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// What only one architecture has.
pub(super) const X86_64: &[&str] = &["arch_prctl", "modify_ldt"];
/// What only one architecture has, its 32-bit programs included.
pub(super) const AARCH64: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "breakpoint", "cacheflush", "set_tls"];

/// Personalities that change nothing of security: Linux, Linux with 32-bit addresses shown by uname, both with the
/// name of Linux 2.6, and asking for the present one.
pub(super) const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// Sockets to the hypervisor and other virtual machines: no namespace holds them.
pub(super) const AF_VSOCK: u64 = 40;

/// The flags of `clone` that make a namespace: mount, cgroup, UTS, IPC, user, PID, network.
pub(super) const CLONE_NAMESPACES: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
