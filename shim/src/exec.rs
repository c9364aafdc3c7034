//! A further process in a running container, started by few system calls in a forked child of the shim.
//!
//! Order: the cgroup (a directory of the exec's own below the container's in one hierarchy, so that all it starts can be killed
//! together); limits and score while still in the host's namespaces; all namespaces with one setns on the container's pidfd; a fork
//! for the PID namespace, as a sibling, so that the process becomes the shim's child; then session, terminal, streams, working
//! directory, AppArmor, ids, SELinux, capabilities, no_new_privs, seccomp, exec. The report channel closes with a successful exec; what fails
//! before is reported over it.
//!
//! Not applied to an exec: ioPriority, scheduler, execCPUAffinity.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::syscall::syscall::SyscallType;
use libcontainer::{apparmor, capabilities, seccomp};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxSeccomp, Process};

use crate::adapt::{self, Restrictions, UMASK, cap_oom_score, cap_rlimit, rlimit_number};
use crate::cgroup;
use crate::executor;
use crate::filter::{self, Filter};
use crate::job::Reporter;
use crate::null::null;
use crate::status::{Code, Failure};
use crate::stdio;
use crate::sys::{self, Fork};
use crate::userns::{self, Maps};

/// What an exec needs to know.
#[derive(Debug)]
pub(crate) struct Execution<'a> {
    pub(crate) exec_id: &'a str,
    pub(crate) init: i32,
    pub(crate) bundle: &'a Path,
    pub(crate) cgroups: &'a [PathBuf],
    pub(crate) spec: &'a [u8],
    pub(crate) terminal: bool,
    pub(crate) stdio: [Option<OwnedFd>; 3],
}

/// The exec's own cgroup directory.
pub(crate) fn own_directory(cgroups: &[PathBuf], exec_id: &str) -> Option<PathBuf> {
    cgroup::for_killing(cgroups).map(|base| base.join(format!("berth-exec-{exec_id}")))
}

/// Runs it; returns only in the child that has nothing more to do.
pub(crate) fn run(execution: Execution<'_>, reporter: &Reporter) {
    let joined = match own_directory(execution.cgroups, execution.exec_id) {
        Some(own) => join_directory(execution.cgroups, &own),
        None => Ok(()),
    };
    run_joined(execution, joined, reporter);
}

/// The same in a process that has joined the cgroup, or failed to.
pub(crate) fn run_joined(execution: Execution<'_>, joined: io::Result<()>, reporter: &Reporter) {
    let result = joined
        .map_err(|error| Failure::doing("joining the container's cgroup", &error))
        .and_then(|()| prepare(execution, reporter));
    if let Err(failure) = result {
        reporter.failed(&failure);
    }
}

fn prepare(execution: Execution<'_>, reporter: &Reporter) -> Result<(), Failure> {
    let mut process: Process = serde_json::from_slice(execution.spec)
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("process spec: {error}")))?;
    if process.capabilities().is_none() {
        // Those of the container, as with runc.
        let spec = adapt::load(execution.bundle)?;
        let own = spec.process().as_ref().and_then(|process| process.capabilities().clone());
        process.set_capabilities(Some(own.unwrap_or_else(adapt::no_capabilities)));
    }
    let filter = filter_of(execution.bundle)?;
    adapt::leave_session_keyring();
    if let Some(wanted) = process.oom_score_adj() {
        cap_oom_score(wanted);
    }
    for limit in process.rlimits().iter().flatten() {
        let limit = cap_rlimit(limit);
        sys::set_rlimit(rlimit_number(limit.typ()), limit.soft(), limit.hard())
            .map_err(|error| Failure::doing(&format!("setting {}", limit.typ()), &error))?;
    }
    give_streams(&execution, &process)
        .map_err(|error| Failure::doing("handing over standard streams", &error))?;
    enter(execution.init).map_err(|error| Failure::doing("entering the container", &error))?;
    match sys::fork_sibling().map_err(|error| Failure::doing("forking", &error))? {
        Fork::Parent(pid) => {
            reporter.pid(pid);
            Ok(())
        }
        Fork::Child => {
            let failure = become_process(execution, &process, filter, reporter);
            reporter.failed(&failure);
            sys::exit_now(if failure.code == Code::NotFound { 127 } else { 126 })
        }
    }
}

/// Makes `own`, a directory below the container's in one hierarchy, and joins it; in the others the container's.
pub(crate) fn join_directory(cgroups: &[PathBuf], own: &Path) -> io::Result<()> {
    let base = cgroup::for_killing(cgroups);
    match fs::create_dir(own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io::Error::new(error.kind(), format!("making {}: {error}", own.display())));
        }
        _ => {}
    }
    let directories: Vec<PathBuf> = cgroups
        .iter()
        .map(|directory| if Some(directory) == base { own.to_owned() } else { directory.clone() })
        .collect();
    cgroup::join(&directories, 0)
}

/// What restricts the system calls of an exec.
enum Calls {
    /// The program compiled when the container was created.
    Compiled(Option<Filter>),
    /// A profile that libcontainer loads.
    Profile(Box<LinuxSeccomp>),
}

fn filter_of(bundle: &Path) -> Result<Calls, Failure> {
    if let Some(filter) = Filter::kept(bundle) {
        return Ok(Calls::Compiled(Some(filter)));
    }
    Ok(match profile_of(bundle)? {
        None => Calls::Compiled(None),
        Some(profile) => match Filter::of(&profile, None)? {
            Some(filter) => Calls::Compiled(Some(filter)),
            None => {
                let mut profile = profile;
                filter::swap_masked(&mut profile);
                Calls::Profile(Box::new(profile))
            }
        },
    })
}

/// The container's seccomp profile, without parsing more of its spec than needed.
fn profile_of(bundle: &Path) -> Result<Option<LinuxSeccomp>, Failure> {
    #[derive(serde::Deserialize)]
    struct Linux {
        seccomp: Option<LinuxSeccomp>,
    }
    #[derive(serde::Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    let path = bundle.join("config.json");
    let text =
        fs::read(&path).map_err(|error| Failure::doing(&format!("reading {}", path.display()), &error))?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| Failure::doing(&format!("parsing {}", path.display()), &error))?;
    Ok(spec.linux.and_then(|linux| linux.seccomp))
}

/// Joins every namespace of `init` that is not the caller's own already.
fn enter(init: i32) -> io::Result<()> {
    const KINDS: [(&str, i32); 8] = [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("pid", libc::CLONE_NEWPID),
        ("net", libc::CLONE_NEWNET),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", 0x80),
    ];
    let pidfd = sys::pidfd_open(init)?;
    let mut flags = 0;
    for (name, flag) in KINDS {
        let theirs = match fs::read_link(format!("/proc/{init}/ns/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == "time" => continue,
            result => result?,
        };
        if theirs != fs::read_link(format!("/proc/self/ns/{name}"))? {
            flags |= flag;
        }
    }
    if flags != 0 {
        sys::setns(pidfd.as_raw_fd(), flags)?;
    }
    // Until then the caller is a user whom the namespace does not know, who can make no file.
    if flags & libc::CLONE_NEWUSER != 0 { userns::become_root() } else { Ok(()) }
}

fn give_streams(execution: &Execution<'_>, process: &Process) -> io::Result<()> {
    let (uid, gid) = (process.user().uid(), process.user().gid());
    // A process that is gone is found out when it is entered.
    let maps = Maps::of_process(execution.init).unwrap_or_default();
    let (uid, gid) = maps.host(uid, gid).unwrap_or((uid, gid));
    Ok(stdio::give(execution.stdio.iter().flatten(), uid, gid)?)
}

fn become_process(execution: Execution<'_>, process: &Process, calls: Calls, reporter: &Reporter) -> Failure {
    match dress(execution, process, calls, reporter) {
        Err(failure) => failure,
        Ok(()) => {
            // The root is the container's by now.
            let home = crate::home::of(Path::new("/"), process.user().uid());
            let (message, code) = executor::execute(process, Some(&home));
            Failure::new(if code == 127 { Code::NotFound } else { Code::FailedPrecondition }, message)
        }
    }
}

fn dress(
    execution: Execution<'_>,
    process: &Process,
    calls: Calls,
    reporter: &Reporter,
) -> Result<(), Failure> {
    let step =
        |what: &'static str| move |error: &(dyn std::error::Error + 'static)| Failure::doing(what, error);
    setsid().map_err(|error| step("setsid")(&error))?;
    connect_streams(execution.terminal, execution.stdio, process, reporter)
        .map_err(|error| step("connecting streams")(&error))?;
    umask(process.user().umask().and_then(Mode::from_bits).unwrap_or(Mode::from_bits_truncate(UMASK)));
    if let Some(profile) = process.apparmor_profile() {
        apparmor::apply_profile(profile).map_err(|error| step("applying the AppArmor profile")(&error))?;
    }
    let directory = process.cwd();
    // As root first, then as the user, as the container's own process does: one of the two may be kept out.
    let mut early = chdir(directory);
    if early == Err(nix::errno::Errno::ENOENT) && fs::create_dir_all(directory).is_ok() {
        early = chdir(directory);
    }
    let groups: Vec<Gid> =
        process.user().additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|error| step("setting supplementary groups")(&error))?;
    let kernel = SyscallType::Linux.create_syscall();
    set_ids(process).map_err(|error| step("setting user and group")(&error))?;
    capabilities::reset_effective(kernel.as_ref()).map_err(|error| step("resetting capabilities")(&error))?;
    if early.is_err() {
        chdir(directory)
            .map_err(|error| Failure::doing(&format!("changing to {}", directory.display()), &error))?;
    }
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let filter = match calls {
        Calls::Compiled(filter) => filter,
        Calls::Profile(profile) => {
            seccomp::initialize_seccomp(&profile)
                .map_err(|error| step("loading the seccomp filter")(&error))?;
            None
        }
    };
    let capabilities = process.capabilities().clone();
    let label = process.selinux_label().clone();
    executor::restrict(&Restrictions { capabilities, filter, no_new_privileges, label })
}

fn set_ids(process: &Process) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(process.user().uid()), Gid::from_raw(process.user().gid()));
    nix::sys::prctl::set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)
}

fn connect_streams(
    terminal: bool,
    stdio: [Option<OwnedFd>; 3],
    process: &Process,
    reporter: &Reporter,
) -> io::Result<()> {
    if !terminal {
        for (target, fd) in stdio.into_iter().enumerate() {
            let fd = match fd {
                Some(fd) => fd,
                None => null()?,
            };
            let fd = sys::dup_high(fd.as_raw_fd())?;
            sys::dup_onto(fd.as_raw_fd(), i32::try_from(target).unwrap_or_default())?;
        }
        return Ok(());
    }
    let pair = nix::pty::openpty(None, None)?;
    if let Some(size) = process.console_size() {
        let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        sys::resize_terminal(pair.master.as_raw_fd(), cells(size.height()), cells(size.width()))?;
    }
    reporter.terminal(pair.master.as_fd());
    nix::unistd::fchown(pair.slave.as_fd(), Some(Uid::from_raw(process.user().uid())), None)?;
    for target in 0..3 {
        sys::dup_onto(pair.slave.as_raw_fd(), target)?;
    }
    sys::set_controlling_terminal(0)
}
