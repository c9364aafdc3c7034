//! Restores a container from criu's images, in a forked child of the shim.
//!
//! An OCI runtime binary has criu do it by itself (`oci`). With the built-in runtime this is how:
//! The child takes a mount namespace of its own with the root file system, as for any creation, makes the container's cgroup and has
//! criu run in it: what it restores is born there. The mount table, the PID namespace and all that is in processes come from the
//! images; namespaces of the pod, mounts from outside and standard streams from the new container. Its specification counts for
//! these, for the cgroup and for later execs.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::adapt;
use crate::cgroup;
use crate::checkpoint::{is_bind, namespace_key};
use crate::create::{Creation, Prepared, prepare, report_cgroup};
use crate::criu::Criu;
use crate::criu::request::{DESCRIPTORS, RESTORE_LOG, Source, program};
use crate::criu::wire::{Kind, Options};
use crate::devices;
use crate::job::Reporter;
use crate::null::null;
use crate::oci::Binary;
use crate::staging::{self, Runtime};
use crate::status::{Code, Failure};
use crate::sys;
use crate::update;

/// Devices that containers have, in case they were bound from the host's.
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console"];

/// Restores, and reports the process as a creation does.
pub(crate) fn run(creation: Creation, source: &Source, binary: Option<&Binary>, reporter: &Reporter) {
    let result = match binary {
        None => restore(creation, source, reporter),
        Some(binary) => binary.restore(creation, source, reporter),
    };
    match result {
        Ok(()) => reporter.done(),
        Err(failure) => reporter.failed(&failure),
    }
}

fn restore(creation: Creation, source: &Source, reporter: &Reporter) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: io::Error| Failure::doing(what, &error);
    let program = program(&source.criu)?;
    adapt::leave_session_keyring();
    let own = cgroup::own_membership().map_err(failed("reading the cgroup"))?;
    let Prepared { mut spec, container, mut stage } = prepare(&creation)?;
    container.refuse("containers of pods with a user namespace can't be restored")?;
    adapt::check_mounts(&spec, &creation.bundle)?;
    let path = adapt::place(&mut spec)?.ok_or_else(|| {
        Failure::new(Code::InvalidArgument, "a container to restore needs a cgroup with an absolute path")
    })?;
    let directories = cgroup::create(&path).map_err(failed("making the container's cgroup"))?;
    let mounts = spec.mounts().clone().unwrap_or_default();
    if !cgroup::unified() {
        let mounts = adapt::cgroup_mounts(mounts, &path).map_err(failed("making the container's cgroup"))?;
        spec.set_mounts(Some(mounts));
    }
    staging::mounts(&mut spec, &creation.bundle, &container, &mut stage, Runtime::Libcontainer)?;

    fs::create_dir_all(&source.work).map_err(failed("making the directory of criu's log"))?;
    let open = |path: &Path| {
        File::open(path).map_err(|error| Failure::doing(&format!("opening {}", path.display()), &error))
    };
    let (images, work) = (open(&source.images)?, open(&source.work)?);
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut options = Options {
        images: images.as_raw_fd(),
        work: work.as_raw_fd(),
        log_file: RESTORE_LOG.to_owned(),
        root: creation.bundle.join("rootfs").display().to_string(),
        mounts: mounts_from_outside(&spec, &creation.bundle, &directories),
        sibling: true,
        close_connections: true,
        ..Options::default()
    };
    namespaces(&spec, &mut options, &mut kept)?;
    let names = PodNames::of(&options).map_err(failed("reading the pod's host name"))?;
    streams(creation, &source.images, &mut options, &mut kept)
        .map_err(failed("preparing standard streams"))?;
    let mut keep: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([images.as_raw_fd(), work.as_raw_fd()]);

    let criu = Criu::start(&program, source.work.join(RESTORE_LOG), source.limit, &keep)?;
    enter_cgroup(&spec, criu.pid(), &directories)?;
    let answer = criu.run(Kind::Restore, &options, None, |notice| {
        if let ("orphan-pts-master", Some(master)) = (notice.script, notice.fd) {
            reporter.terminal(master.as_fd());
        }
        Ok(())
    })?;
    if let Some(names) = names {
        names.put_back().map_err(failed("setting the pod's host name"))?;
    }
    if answer.pid <= 0 {
        return Err(Failure::internal("criu restored no process"));
    }
    report_cgroup(answer.pid, &own, reporter)?;
    reporter.pid(answer.pid);
    Ok(())
}

/// Puts criu, and so all that it restores, into the container's cgroup with its limits.
fn enter_cgroup(spec: &Spec, pid: i32, directories: &[PathBuf]) -> Result<(), Failure> {
    let enter = || -> Result<(), Failure> {
        cgroup::join(directories, pid)
            .map_err(|error| Failure::doing("joining the container's cgroup", &error))?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        if let Some(resources) = resources {
            let json = serde_json::to_vec(resources)
                .map_err(|error| Failure::doing("writing the container's limits", &error))?;
            update::apply(pid, directories, &json)?;
        }
        let rules = adapt::device_rules(spec);
        if cgroup::unified() && !rules.is_empty() {
            for directory in directories {
                devices::enforce(directory, &rules)
                    .map_err(|error| Failure::doing("enforcing the container's device rules", &error))?;
            }
        }
        Ok(())
    };
    let result = enter();
    if result.is_err() {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
    result
}

/// Names of mounts from outside, as the dump gave them or runc does, and what is there now.
fn mounts_from_outside(spec: &Spec, bundle: &Path, cgroups: &[PathBuf]) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let point = mount.destination().display().to_string();
        match (is_bind(mount), mount.source()) {
            (true, Some(source)) => list.push((point, bundle.join(source).display().to_string())),
            _ if mount.typ().as_deref() == Some("cgroup") => {
                list.extend(cgroups.first().map(|directory| (point, directory.display().to_string())));
            }
            _ if mount.typ().as_deref() == Some("sysfs") => list.push((point, "/sys".to_owned())),
            _ => {}
        }
    }
    let masked = spec.linux().as_ref().and_then(|linux| linux.masked_paths().as_ref());
    for path in masked.into_iter().flatten() {
        list.push((path.clone(), "/dev/null".to_owned()));
    }
    for device in DEVICES {
        list.push((device.to_owned(), device.to_owned()));
    }
    list
}

/// The pod's namespaces: those that were left out of the dump are handed over, the others joined.
fn namespaces(spec: &Spec, options: &mut Options, kept: &mut Vec<OwnedFd>) -> Result<(), Failure> {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in list.into_iter().flatten() {
        let Some(path) = namespace.path() else { continue };
        if let Some((_, key)) = namespace_key(namespace.typ()) {
            let file = File::open(path)
                .map_err(|error| Failure::doing(&format!("opening {}", path.display()), &error))?;
            options.inherited.push((key.to_owned(), file.as_raw_fd()));
            kept.push(file.into());
            continue;
        }
        let name = match namespace.typ() {
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Uts => "uts",
            _ => continue,
        };
        options.joined.push((name.to_owned(), path.display().to_string()));
    }
    Ok(())
}

/// Host and domain name of the pod: criu gives a namespace that it joins those of the dumped one.
struct PodNames {
    namespace: File,
    own: File,
    host: Vec<u8>,
    domain: Vec<u8>,
}

impl PodNames {
    fn of(options: &Options) -> io::Result<Option<Self>> {
        let Some((_, path)) = options.joined.iter().find(|(kind, _)| kind == "uts") else { return Ok(None) };
        let (namespace, own) = (File::open(path)?, File::open("/proc/self/ns/uts")?);
        let mut names = Self { namespace, own, host: Vec::new(), domain: Vec::new() };
        let found = names.inside(|| Ok(rustix::system::uname()))?;
        names.host = found.nodename().to_bytes().to_vec();
        names.domain = found.domainname().to_bytes().to_vec();
        Ok(Some(names))
    }

    /// Does something in the pod's namespace. The process has one thread.
    fn inside<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        sys::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWUTS)?;
        let result = work();
        sys::setns(self.own.as_raw_fd(), libc::CLONE_NEWUTS)?;
        result
    }

    fn put_back(&self) -> io::Result<()> {
        self.inside(|| {
            rustix::system::sethostname(&self.host)?;
            rustix::system::setdomainname(&self.domain)?;
            Ok(())
        })
    }
}

/// The pipes of the dumped container's standard streams become those of this one.
fn streams(
    creation: Creation,
    images: &Path,
    options: &mut Options,
    kept: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    let Creation { stdin, stdout, stderr, terminal, .. } = creation;
    if terminal {
        return Ok(());
    }
    let text = fs::read(images.join(DESCRIPTORS))?;
    let links: Vec<String> = serde_json::from_slice(&text)?;
    for (link, fd) in links.into_iter().zip([stdin, stdout, stderr]) {
        if !link.starts_with("pipe:[") || options.inherited.iter().any(|(key, _)| *key == link) {
            continue;
        }
        let fd = match fd {
            Some(fd) => fd,
            None => null()?,
        };
        // Beyond the numbers that programs begin with.
        let fd = sys::dup_high(fd.as_raw_fd())?;
        options.inherited.push((link, fd.as_raw_fd()));
        kept.push(fd);
    }
    Ok(())
}
