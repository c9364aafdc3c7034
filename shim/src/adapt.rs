//! Adapts a container's spec for libcontainer: what it gets wrong or can't know is taken out of what it is given and done here or
//! by our executor.
//!
//! - The seccomp filter comes compiled, and is loaded by the executor together with dropping the capabilities, because loading may
//!   need one of them.
//! - On cgroup v1 a mount of type `cgroup` becomes one bind mount a hierarchy: libcontainer looks its cgroup up in `/proc` by a
//!   process id that means another process there when the container joins a PID namespace.
//! - On cgroup v2 the directories above the container's are made here: one that another container's creation makes meanwhile is an
//!   error to it. The container's own is left to it, as it passes controllers on only where it makes that.
//! - Mounts that it can't make as they are asked for are made beforehand (`stage`).
//! - A container with a user namespace gets the other namespaces as open files: its root may not reach their paths.
//! - SELinux labels, of which it knows little, become options of mounts and a step of our executor (`selinux`).
//! - What this kernel refuses (scores, limits) is capped; the working directory is made; HOME is looked up.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxDeviceCgroup, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Spec,
};

use crate::bundle::state_root;
use crate::cgroup;
use crate::cwd;
use crate::filter::{self, Filter};
use crate::say::say;
use crate::selinux;
use crate::stage::Stage;
use crate::staging::{self, Runtime};
use crate::status::{Code, Failure};
use crate::sys;
use crate::systemd::Scope;
use crate::userns::OfContainer;

/// The umask of processes whose specification has none: not that of whoever started the daemon.
pub(crate) const UMASK: u32 = 0o022;

/// What the executor applies as the last thing before the command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restrictions {
    pub(crate) capabilities: Option<LinuxCapabilities>,
    pub(crate) filter: Option<Filter>,
    pub(crate) no_new_privileges: bool,
    /// The SELinux label of the command.
    pub(crate) label: Option<String>,
}

/// What was found out on the way.
#[derive(Debug)]
pub(crate) struct Adapted {
    pub(crate) restrictions: Restrictions,
    /// Rules that libcontainer does not enforce: those of cgroup v2.
    pub(crate) devices: Vec<LinuxDeviceCgroup>,
    /// Namespaces that the spec names by descriptor: to be kept open until they are joined.
    pub(crate) namespaces: Vec<File>,
}

/// The bundle's spec as it was written.
pub(crate) fn load(bundle: &Path) -> Result<Spec, Failure> {
    let path = bundle.join("config.json");
    Spec::load(&path).map_err(|error| {
        Failure::new(Code::InvalidArgument, format!("{}: {}", path.display(), crate::status::chain(&error)))
    })
}

/// Puts `spec` over the bundle's `config.json` in this mount namespace: the file itself stays as it was written.
pub(crate) fn replace(spec: &Spec, bundle: &Path) -> Result<(), Failure> {
    let effective = state_root(bundle);
    let write = || -> Result<(), Box<dyn std::error::Error>> {
        fs::create_dir_all(&effective)?;
        let file = effective.join("config.effective.json");
        fs::write(&file, serde_json::to_vec(spec)?)?;
        rustix::mount::mount_bind(&file, bundle.join("config.json"))?;
        Ok(())
    };
    write().map_err(|error| Failure::doing("writing the adapted config.json", error.as_ref()))
}

/// Checks what would fail with an unclear message later, adapts the spec, and puts the result over the bundle's `config.json` in
/// this mount namespace: the file itself stays as it was written.
pub(crate) fn spec(
    mut spec: Spec,
    bundle: &Path,
    container: &OfContainer,
    stage: &mut Stage,
    seccomp_cache: Option<&Path>,
) -> Result<Adapted, Failure> {
    check_mounts(&spec, bundle)?;
    selinux::check(&spec)?;
    let root = spec.root().as_ref().map_or_else(|| bundle.join("rootfs"), |root| bundle.join(root.path()));
    if let Some(path) = place(&mut spec)? {
        let failed =
            |error: io::Error| Failure::doing(&format!("making the cgroup {}", path.display()), &error);
        if cgroup::unified() {
            cgroup::make_parents_unified(&path).map_err(failed)?;
        } else {
            let mounts = cgroup_mounts(spec.mounts().clone().unwrap_or_default(), &path).map_err(failed)?;
            spec.set_mounts(Some(mounts));
        }
    }
    staging::mounts(&mut spec, bundle, container, stage, Runtime::Libcontainer)?;
    selinux::label_mounts(&mut spec, &root, stage)?;
    let mounts = spec.mounts().clone().unwrap_or_default();
    let Some(process) = spec.process_mut().as_mut() else {
        return Err(Failure::new(Code::InvalidArgument, "config.json has no process"));
    };
    if let Some(wanted) = process.oom_score_adj() {
        process.set_oom_score_adj(Some(cap_oom_score(wanted)));
    }
    if let Some(limits) = process.rlimits().clone() {
        process.set_rlimits(Some(limits.iter().map(cap_rlimit).collect()));
    }
    if process.capabilities().is_none() {
        process.set_capabilities(Some(no_capabilities()));
    }
    let mut restrictions = Restrictions {
        no_new_privileges: process.no_new_privileges() == Some(true),
        label: process.selinux_label().clone(),
        ..Default::default()
    };
    // libcontainer takes "false" for "true" when it decides whether loading the filter is privileged.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if process.user().umask().is_none() {
        let mut user = process.user().clone();
        user.set_umask(Some(UMASK));
        process.set_user(user);
    }
    let environment = process.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        // libcontainer would ask the C library's name service, which may load modules out of the container's root.
        let home = crate::home::of(&root, process.user().uid());
        let mut environment = environment;
        environment.push(format!("HOME={home}"));
        process.set_env(Some(environment));
    }
    if let Err(error) = cwd::make(&root, bundle, &mounts, process.cwd(), container) {
        if error.kind() == std::io::ErrorKind::NotADirectory {
            let message = format!("working directory {}: {error}", process.cwd().display());
            return Err(Failure::new(Code::FailedPrecondition, message));
        }
        say(format_args!("making the working directory {}: {error}", process.cwd().display()));
    }
    take_restrictions(&mut spec, &mut restrictions, bundle, seccomp_cache)?;
    let devices = if cgroup::unified() { device_rules(&spec) } else { Vec::new() };
    let namespaces = if container.there { open_namespaces(&mut spec)? } else { Vec::new() };
    replace(&spec, bundle)?;
    if spec.hooks().is_some() {
        fs::write(hooks_mark(bundle), "")
            .map_err(|error| Failure::doing("noting that there are hooks", &error))?;
    }
    Ok(Adapted { restrictions, devices, namespaces })
}

/// What a process has whose specification says nothing of capabilities, with other runtimes as well. To libcontainer it would be all
/// that the shim has.
pub(crate) fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    let empty = || Some(Capabilities::new());
    none.set_bounding(empty())
        .set_effective(empty())
        .set_inheritable(empty())
        .set_permitted(empty())
        .set_ambient(empty());
    none
}

/// Where the container's cgroup is to be, as an absolute path below the hierarchies, if the specification says. Where systemd makes
/// it, it is made now, with the caller in it.
pub(crate) fn place(spec: &mut Spec) -> Result<Option<PathBuf>, Failure> {
    let Some(mut path) = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()) else {
        return Ok(None);
    };
    if let Some(named) = path.to_str().and_then(Scope::parse) {
        path = named.cgroup();
        if let Some(linux) = spec.linux_mut() {
            linux.set_cgroups_path(Some(path.clone()));
        }
    }
    if let Some(scope) = Scope::of(&path) {
        scope.enter()?;
    }
    Ok(path.is_absolute().then_some(path))
}

/// Opens the namespaces that are to be joined, and names the descriptors in place of the paths.
fn open_namespaces(spec: &mut Spec) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        let Some(path) = namespace.path() else { continue };
        let file = File::open(path)
            .map_err(|error| Failure::doing(&format!("opening the namespace {}", path.display()), &error))?;
        namespace.set_path(Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()));
        files.push(file);
    }
    Ok(files)
}

/// Whether the created container has hooks, which libcontainer runs.
pub(crate) fn has_hooks(bundle: &Path) -> bool {
    hooks_mark(bundle).exists()
}

fn hooks_mark(bundle: &Path) -> PathBuf {
    state_root(bundle).join("hooks")
}

pub(crate) fn device_rules(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().clone()).unwrap_or_default()
}

/// Moves the filter and the capabilities from the spec to what the executor does.
fn take_restrictions(
    spec: &mut Spec,
    restrictions: &mut Restrictions,
    bundle: &Path,
    seccomp_cache: Option<&Path>,
) -> Result<(), Failure> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    let filter = match &profile {
        Some(profile) => Filter::of(profile, seccomp_cache)?,
        None => None,
    };
    if let (Some(mut profile), None) = (profile, &filter) {
        // libcontainer loads it, with the listener it needs, and drops the capabilities at the right moment.
        filter::swap_masked(&mut profile);
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(Some(profile));
        }
        return Ok(());
    }
    if let Some(filter) = &filter {
        filter.keep(bundle).map_err(|error| Failure::doing("keeping the seccomp filter", &error))?;
    }
    restrictions.filter = filter;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    if let Some(process) = spec.process_mut() {
        restrictions.capabilities = process.capabilities().clone();
        process.set_capabilities(None);
    }
    Ok(())
}

/// Replaces mounts of type `cgroup` by bind mounts of the container's own directories, which are made for that.
pub(crate) fn cgroup_mounts(mounts: Vec<Mount>, cgroups_path: &Path) -> io::Result<Vec<Mount>> {
    let is_cgroup = |mount: &Mount| mount.typ().as_deref() == Some("cgroup");
    if !mounts.iter().any(is_cgroup) {
        return Ok(mounts);
    }
    let directories = cgroup::make(cgroups_path)?;
    let mut list = Vec::new();
    for mount in mounts {
        if !is_cgroup(&mount) {
            list.push(mount);
            continue;
        }
        let options = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let read_only = mount.options().iter().flatten().any(|option| option == "ro");
        let base = MountBuilder::default()
            .destination(mount.destination())
            .typ("tmpfs")
            .source("tmpfs")
            .options(options(&["noexec", "nosuid", "nodev", "mode=755"]));
        list.push(base.build().map_err(io::Error::other)?);
        for (name, directory) in &directories {
            let mut flags = options(&["bind", "nosuid", "noexec", "nodev"]);
            flags.push(if read_only { "ro" } else { "rw" }.to_owned());
            let bind = MountBuilder::default()
                .destination(mount.destination().join(name))
                .typ("bind")
                .source(directory)
                .options(flags);
            list.push(bind.build().map_err(io::Error::other)?);
        }
    }
    Ok(list)
}

pub(crate) fn check_mounts(spec: &Spec, bundle: &Path) -> Result<(), Failure> {
    for mount in spec.mounts().iter().flatten() {
        let is_bind = mount.typ().as_deref() == Some("bind")
            || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let (true, Some(source)) = (is_bind, mount.source()) else { continue };
        // A hung file system must not be asked twice: libcontainer stats it anyway, and the shim does not wait for us.
        if let Err(error) = fs::symlink_metadata(bundle.join(source)) {
            let destination = mount.destination().display();
            return Err(Failure::new(
                Code::InvalidArgument,
                format!("mount source {} (for {destination}): {error}", source.display()),
            ));
        }
    }
    Ok(())
}

/// Parts the calling process, and the container's that it starts, from the keys of whoever started the daemon: what is in a session
/// keyring is for all its processes to read. libcontainer leaves it as it is. A kernel without keys has none to keep apart.
pub(crate) fn leave_session_keyring() {
    if let Err(error) = sys::leave_session_keyring()
        && error.raw_os_error() != Some(libc::ENOSYS)
    {
        say(format_args!("the container keeps the daemon's session keyring, as none can be made: {error}"));
    }
}

/// Without CAP_SYS_RESOURCE the score can't go below the caller's own.
pub(crate) fn cap_oom_score(wanted: i32) -> i32 {
    let path = "/proc/self/oom_score_adj";
    let Ok(current) = fs::read_to_string(path) else { return wanted };
    match fs::write(path, wanted.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let current = current.trim().parse().unwrap_or(wanted);
            say(format_args!(
                "oom_score_adj {wanted} is refused by the kernel (no CAP_SYS_RESOURCE): using {current}"
            ));
            current
        }
        _ => wanted,
    }
}

/// Without CAP_SYS_RESOURCE a hard limit can't be raised.
pub(crate) fn cap_rlimit(limit: &PosixRlimit) -> PosixRlimit {
    let resource = rlimit_number(limit.typ());
    let Ok((_, maximum)) = sys::get_rlimit(resource) else { return *limit };
    if limit.hard() <= maximum || sys::set_rlimit(resource, limit.soft().min(maximum), limit.hard()).is_ok() {
        return *limit;
    }
    say(format_args!(
        "{} of {} is refused by the kernel (no CAP_SYS_RESOURCE): using {maximum}",
        limit.typ(),
        limit.hard()
    ));
    PosixRlimitBuilder::default()
        .typ(limit.typ())
        .hard(maximum)
        .soft(limit.soft().min(maximum))
        .build()
        .unwrap_or(*limit)
}

/// The kernel's number of a limit.
pub(crate) fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
