//! Creation of a container with libcontainer, in a forked child of the shim.
//!
//! The child takes a mount namespace of its own, mounts the root file system there, adapts the spec to what this kernel allows,
//! and lets libcontainer do the rest; the container's first process is left waiting for its start and becomes the shim's child
//! when the creator ends.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxDeviceCgroup, Process, Spec};

use crate::adapt;
use crate::bundle::state_root;
use crate::cgroup;
use crate::devices;
use crate::executor::Command;
use crate::job::Reporter;
use crate::logger::{self, Feed};
use crate::null::null;
use crate::rootfs::{self, RootfsMount};
use crate::stage::Stage;
use crate::staging;
use crate::status::Failure;
use crate::stdio;
use crate::sys;
use crate::systemd;
use crate::timing::Laps;
use crate::trace;
use crate::userns::OfContainer;

/// What a creation needs to know.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<RootfsMount>,
    pub(crate) terminal: bool,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Where compiled filters of all containers are kept.
    pub(crate) seccomp_cache: Option<PathBuf>,
    /// Who reads what it prints.
    pub(crate) feed: Option<Feed>,
    /// The namespace of containerd's that it is in.
    pub(crate) namespace: String,
    /// When it was asked for, where somebody traces it.
    pub(crate) traced: Option<u64>,
}

impl Creation {
    /// Starts the logger, if there is to be one.
    pub(crate) fn start_logger(&mut self, reporter: &Reporter) -> Result<(), Failure> {
        let Some(feed) = self.feed.take() else { return Ok(()) };
        let client = logger::Client { id: &self.id, namespace: &self.namespace, bundle: &self.bundle };
        feed.start(&client, reporter)
    }
}

/// Creates the container and reports its process, cgroup and terminal.
pub(crate) fn run(creation: Creation, reporter: &Reporter) {
    trace::report_errors(reporter, creation.traced.is_some());
    let state = state_root(&creation.bundle);
    match create(creation, reporter) {
        Ok(()) => reporter.done(),
        Err(failure) => {
            let _ = fs::remove_dir_all(state);
            reporter.failed(&failure);
        }
    }
}

fn create(creation: Creation, reporter: &Reporter) -> Result<(), Failure> {
    let mut laps = Laps::new(reporter, creation.traced);
    laps.lap("shim_fork");
    adapt::leave_session_keyring();
    let own = cgroup::own_membership().map_err(|error| Failure::doing("reading the cgroup", &error))?;
    let Prepared { spec, container, mut stage } = prepare(&creation)?;
    laps.lap("shim_rootfs");
    if let Some(process) = spec.process() {
        trace::working_directory(process.cwd());
    }
    let cache = creation.seccomp_cache.as_deref();
    let adapted = adapt::spec(spec, &creation.bundle, &container, &mut stage, cache)?;
    laps.lap("shim_specification");
    let listener = if creation.terminal { Some(console_listener(&creation.bundle)?) } else { None };
    let state_root = state_root(&creation.bundle);
    // What an earlier creation that was cut off left behind.
    let _ = fs::remove_dir_all(state_root.join(&creation.id));
    let failed =
        |error: libcontainer::error::LibcontainerError| Failure::doing("creating the container", &error);
    let mut builder = ContainerBuilder::new(creation.id.clone(), SyscallType::Linux)
        .with_root_path(&state_root)
        .map_err(failed)?
        .with_executor(Command::new(
            reporter.duplicate().map_err(|error| Failure::doing("duplicating a descriptor", &error))?,
            adapted.restrictions,
            laps.since(),
        ))
        .with_console_socket(listener.as_ref().map(|_| console_path(&creation.bundle)));
    if !creation.terminal {
        for (stream, fd) in [creation.stdin, creation.stdout, creation.stderr].into_iter().enumerate() {
            // libcontainer duplicates them onto 0 to 2 and closes the originals: they must be others.
            let fd = match fd {
                Some(fd) => sys::dup_high(fd.as_raw_fd()),
                None => null().and_then(|fd| sys::dup_high(fd.as_raw_fd())),
            }
            .map_err(|error| Failure::doing("preparing standard streams", &error))?;
            builder = match stream {
                0 => builder.with_stdin(fd),
                1 => builder.with_stdout(fd),
                _ => builder.with_stderr(fd),
            };
        }
    }
    let container: Container =
        builder.as_init(&creation.bundle).with_systemd(false).with_detach(true).build().map_err(failed)?;
    drop(adapted.namespaces);
    laps.skip();
    let pid = container.pid().ok_or_else(|| Failure::internal("libcontainer made no process"))?.as_raw();
    if !adapted.devices.is_empty() {
        // Before the command runs: its process still waits for the start.
        enforce_devices(pid, &own, &adapted.devices)?;
    }
    report_cgroup(pid, &own, reporter)?;
    if let Some(listener) = listener {
        let _ = fs::remove_file(console_path(&creation.bundle));
        reporter.terminal(crate::terminal::receive(&listener)?.as_fd());
    }
    laps.lap("shim_cgroup");
    reporter.pid(pid);
    Ok(())
}

/// The state of a creation in its own mount namespace.
pub(crate) struct Prepared {
    pub(crate) spec: Spec,
    pub(crate) container: OfContainer,
    pub(crate) stage: Stage,
}

/// Takes a mount namespace, mounts the root there, and hands the standard streams to the container's user. The same for all
/// runtimes.
pub(crate) fn prepare(creation: &Creation) -> Result<Prepared, Failure> {
    let root = creation.bundle.join("rootfs");
    let spec = adapt::load(&creation.bundle)?;
    let container = OfContainer::read(&spec)
        .map_err(|error| Failure::doing("opening the container's user namespace", &error))?;
    rootfs::private_namespace(&creation.bundle)?;
    let mut stage = Stage::new(&creation.bundle, &container)
        .map_err(|error| Failure::doing("preparing mounts", &error))?;
    rootfs::mount_all(&creation.rootfs, &root, &mut stage)?;
    if container.there {
        staging::check_reachable(&root)?;
    }
    if let Some(user) = spec.process().as_ref().map(Process::user) {
        let (uid, gid) = container.outside(user.uid(), user.gid());
        let streams = [&creation.stdin, &creation.stdout, &creation.stderr];
        stdio::give(streams.into_iter().flatten(), uid, gid)
            .map_err(|error| Failure::doing("handing over standard streams", &error))?;
    }
    Ok(Prepared { spec, container, stage })
}

fn enforce_devices(pid: i32, own: &[(String, String)], rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    let failed = |error: &io::Error| {
        let _ = sys::kill(pid, libc::SIGKILL);
        Failure::doing("enforcing the container's device rules", error)
    };
    let directories = cgroup::directories_of(pid, own).map_err(|error| failed(&error))?;
    for directory in directories {
        devices::enforce(&directory, rules).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// The numbers of those that are open.
pub(crate) fn raw(fds: &[Option<OwnedFd>]) -> Vec<RawFd> {
    fds.iter().flatten().map(AsRawFd::as_raw_fd).collect()
}

/// The descriptors a creation needs.
pub(crate) fn descriptors(creation: &Creation) -> Vec<RawFd> {
    [&creation.stdin, &creation.stdout, &creation.stderr]
        .into_iter()
        .flatten()
        .map(AsRawFd::as_raw_fd)
        .chain(creation.feed.iter().flat_map(Feed::descriptors))
        .collect()
}

/// Tells the shim which directories are the container's, and systemd the limits in them.
pub(crate) fn report_cgroup(pid: i32, own: &[(String, String)], reporter: &Reporter) -> Result<(), Failure> {
    let directories = cgroup::directories_of(pid, own)
        .map_err(|error| Failure::doing(&format!("reading the cgroup of process {pid}"), &error))?;
    for directory in directories {
        systemd::tell_limits(&directory);
        reporter.cgroup(&directory);
    }
    Ok(())
}

pub(crate) fn console_path(bundle: &Path) -> PathBuf {
    bundle.join("console.sock")
}

/// Listens for the terminal; the name is bound relative to the bundle because socket names are short.
pub(crate) fn console_listener(bundle: &Path) -> Result<UnixListener, Failure> {
    let _ = fs::remove_file(console_path(bundle));
    let make = || -> io::Result<UnixListener> {
        let before = std::env::current_dir()?;
        std::env::set_current_dir(bundle)?;
        let listener = UnixListener::bind("console.sock");
        std::env::set_current_dir(before)?;
        listener
    };
    make().map_err(|error| Failure::doing("listening for the terminal", &error))
}

/// Lets the created container run, if that takes no more than telling it so: false where hooks are to be run as well.
pub(crate) fn start_at_once(id: &str, bundle: &Path) -> io::Result<bool> {
    if adapt::has_hooks(bundle) {
        return Ok(false);
    }
    // A socket's name is short; the directory's may not be.
    let directory = fs::File::open(state_root(bundle).join(id))?;
    let mut socket = UnixStream::connect(format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd()))?;
    socket.write_all(b"start container")?;
    Ok(true)
}

/// Lets the created container run.
pub(crate) fn start(id: &str, bundle: &Path, reporter: &Reporter) {
    trace::report_errors(reporter, false);
    let result = Container::load(state_root(bundle).join(id)).and_then(|mut container| container.start());
    match result {
        Ok(()) => reporter.done(),
        Err(error) => reporter.failed(&Failure::doing("starting the container", &error)),
    }
}
