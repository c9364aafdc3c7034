//! The second backend: an OCI runtime binary (runc, crun, youki), called as its command line documents.
//!
//! The container's first process becomes the shim's child when the binary has ended, so logs, exit and reaping are the same as
//! with the built-in runtime. Everything here runs in a forked child of the shim.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use oci_spec::runtime::Spec;

use crate::adapt;
use crate::cgroup;
use crate::create::{Creation, Prepared, console_listener, console_path, prepare, report_cgroup};
use crate::criu::request::{DUMP_LOG, Dump, RESTORE_LOG, Source};
use crate::job::Reporter;
use crate::staging::{self, Runtime};
use crate::status::{Code, Failure};
use crate::sys;
use crate::systemd::Scope;
use crate::timing::Laps;

/// How long what a failed restore left may take to be dead.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Which binary, and where it keeps its state.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    pub(crate) root: Option<PathBuf>,
    pub(crate) bundle: PathBuf,
}

impl Binary {
    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        command.arg("--log").arg(log).arg("--log-format").arg("json");
        command.current_dir(&self.bundle).stdin(Stdio::null());
        command
    }

    fn run(
        &self,
        what: &str,
        arguments: &[&str],
        stdio: Option<[Option<OwnedFd>; 3]>,
    ) -> Result<(), Failure> {
        self.run_with(&[], what, arguments, stdio)
    }

    /// `global` comes before the command.
    fn run_with(
        &self,
        global: &[&str],
        what: &str,
        arguments: &[&str],
        stdio: Option<[Option<OwnedFd>; 3]>,
    ) -> Result<(), Failure> {
        let log = self.bundle.join(format!("runtime-{what}.log"));
        let mut command = self.command(&log);
        command.args(global).arg(what).args(arguments);
        let inherits = stdio.is_some();
        if let Some([stdin, stdout, stderr]) = stdio {
            let or_null = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
            command.stdin(or_null(stdin)).stdout(or_null(stdout)).stderr(or_null(stderr));
        } else {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let status = command
            .status()
            .map_err(|error| Failure::doing(&format!("running {}", self.path.display()), &error))?;
        let said = last_error(&log);
        let _ = fs::remove_file(&log);
        if status.success() {
            return Ok(());
        }
        let _ = inherits;
        let message = said.unwrap_or_else(|| format!("{} {what}: {status}", self.path.display()));
        Err(Failure::said(message))
    }

    pub(crate) fn create(&self, creation: Creation, reporter: &Reporter) -> Result<(), Failure> {
        let mut laps = Laps::new(reporter, creation.traced);
        laps.lap("shim_fork");
        let own = cgroup::own_membership().map_err(|error| Failure::doing("reading the cgroup", &error))?;
        let Prepared { mut spec, container, mut stage } = prepare(&creation)?;
        laps.lap("shim_rootfs");
        let scoped = by_systemd(&mut spec);
        if staging::mounts(&mut spec, &creation.bundle, &container, &mut stage, Runtime::Binary)? || scoped {
            adapt::replace(&spec, &creation.bundle)?;
        }
        self.make(creation, &own, reporter, &mut laps, |laps, arguments, stdio| {
            laps.lap("shim_specification");
            let made = self.run_with(global(scoped), "create", arguments, Some(stdio));
            laps.lap("shim_runtime");
            made
        })
    }

    /// Has the first process of a container made by `work`, which gets arguments and standard streams, and reports it.
    fn make(
        &self,
        creation: Creation,
        own: &[(String, String)],
        reporter: &Reporter,
        laps: &mut Laps<'_>,
        work: impl FnOnce(&mut Laps<'_>, &[&str], [Option<OwnedFd>; 3]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let pid_file = self.bundle.join("init.pid");
        let listener = if creation.terminal { Some(console_listener(&creation.bundle)?) } else { None };
        let (bundle, pid_path) = (self.bundle.display().to_string(), pid_file.display().to_string());
        // A socket's name is short: from the bundle, where the program is run.
        let console = console_path(&creation.bundle);
        let console = console.strip_prefix(&self.bundle).unwrap_or(&console).display().to_string();
        let mut arguments = vec!["--bundle", &bundle, "--pid-file", &pid_path];
        if creation.terminal {
            arguments.extend(["--console-socket", &console]);
        }
        arguments.push(&creation.id);
        let stdio = if creation.terminal {
            [None, None, None]
        } else {
            [creation.stdin, creation.stdout, creation.stderr]
        };
        work(laps, &arguments, stdio)?;
        let pid = read_pid(&pid_file)?;
        report_cgroup(pid, own, reporter)?;
        if let Some(listener) = listener {
            let _ = fs::remove_file(console_path(&creation.bundle));
            reporter.terminal(crate::terminal::receive(&listener)?.as_fd());
        }
        laps.lap("shim_cgroup");
        reporter.pid(pid);
        Ok(())
    }

    pub(crate) fn start(&self, id: &str) -> Result<(), Failure> {
        self.run("start", &[id], None)
    }

    /// Dumps the container, which is frozen. The runtime looks for criu in PATH.
    pub(crate) fn checkpoint(&self, dump: &Dump) -> Result<(), Failure> {
        let log = self.bundle.join("runtime-checkpoint.log");
        let _ = fs::remove_file(&log);
        let mut command = self.command(&log);
        command.arg("checkpoint");
        if !dump.asked.exit {
            command.arg("--leave-running");
        }
        command.arg("--image-path").arg(&dump.images).arg("--work-path").arg(&dump.work);
        command.args(["--tcp-established", "--ext-unix-sk", "--file-locks"]);
        command.arg(&dump.id).stdout(Stdio::null()).stderr(Stdio::null());
        self.have_criu(command, &dump.asked.criu, dump.limit, &log, &dump.work.join(DUMP_LOG))
    }

    /// Makes the container from criu's images. It runs at once.
    pub(crate) fn restore(
        &self,
        creation: Creation,
        source: &Source,
        reporter: &Reporter,
    ) -> Result<(), Failure> {
        let mut laps = Laps::new(reporter, creation.traced);
        laps.lap("shim_fork");
        let own = cgroup::own_membership().map_err(|error| Failure::doing("reading the cgroup", &error))?;
        let Prepared { mut spec, container, mut stage } = prepare(&creation)?;
        laps.lap("shim_rootfs");
        container.refuse("containers of pods with a user namespace can't be restored")?;
        adapt::check_mounts(&spec, &creation.bundle)?;
        staging::mounts(&mut spec, &creation.bundle, &container, &mut stage, Runtime::Binary)?;
        fs::create_dir_all(&source.work)
            .map_err(|error| Failure::doing("making the directory of criu's log", &error))?;
        close_connections(&mut spec, &source.work)?;
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
        let scoped = by_systemd(&mut spec);
        adapt::replace(&spec, &creation.bundle)?;
        let id = creation.id.clone();
        let restored =
            self.make(creation, &own, reporter, &mut laps, |laps, arguments, [stdin, stdout, stderr]| {
                laps.lap("shim_specification");
                let log = self.bundle.join("runtime-restore.log");
                let _ = fs::remove_file(&log);
                let mut command = self.command(&log);
                command.args(global(scoped)).args(["restore", "--detach", "--ext-unix-sk", "--file-locks"]);
                command.arg("--image-path").arg(&source.images).arg("--work-path").arg(&source.work);
                let or_null = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
                command.args(arguments).stdin(or_null(stdin)).stdout(or_null(stdout)).stderr(or_null(stderr));
                self.have_criu(command, &source.criu, source.limit, &log, &source.work.join(RESTORE_LOG))?;
                laps.lap("shim_runtime");
                Ok(())
            });
        if restored.is_err() {
            // What was restored until then, and what the program keeps of it: it may have been killed before it knew.
            let _ = self.delete(&id);
            let directories = path.filter(|path| path.is_absolute()).map(|path| cgroup::create(&path));
            let directories = directories.and_then(Result::ok).unwrap_or_default();
            cgroup::kill_all(&directories, KILL_WAIT);
        }
        restored
    }

    /// Runs a command that has criu work, and joins what the two say of a failure.
    fn have_criu(
        &self,
        mut command: Command,
        criu: &str,
        limit: Option<Duration>,
        log: &Path,
        criu_log: &Path,
    ) -> Result<(), Failure> {
        find_criu(&mut command, criu);
        let ended = bounded(command, limit, &self.path);
        let said = last_error(log);
        let _ = fs::remove_file(log);
        let Err(failure) = ended else { return Ok(()) };
        let mut message = match failure.code {
            Code::DeadlineExceeded => failure.message,
            _ => said.unwrap_or(failure.message),
        };
        let errors = crate::criu::last_errors(criu_log);
        if !errors.is_empty() {
            message = format!("{message}: {errors} ({})", criu_log.display());
        }
        let code = if failure.code == Code::Internal { Code::FailedPrecondition } else { failure.code };
        Err(Failure::new(code, message))
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Failure> {
        match self.run("delete", &["--force", id], None) {
            Err(failure) if failure.code == Code::NotFound => Ok(()),
            result => result,
        }
    }

    /// Runs a further process; `spec` is its OCI process as JSON.
    pub(crate) fn exec(
        &self,
        id: &str,
        exec_id: &str,
        spec: &[u8],
        terminal: bool,
        stdio: [Option<OwnedFd>; 3],
        reporter: &Reporter,
    ) -> Result<(), Failure> {
        let directory = self.bundle.join(format!("exec-{exec_id}"));
        let result = self.exec_in(&directory, id, spec, terminal, stdio, reporter);
        let _ = fs::remove_dir_all(&directory);
        result
    }

    fn exec_in(
        &self,
        directory: &Path,
        id: &str,
        spec: &[u8],
        terminal: bool,
        stdio: [Option<OwnedFd>; 3],
        reporter: &Reporter,
    ) -> Result<(), Failure> {
        let failed =
            |error: &std::io::Error| Failure::doing(&format!("preparing {}", directory.display()), error);
        fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        let (spec_file, pid_file) = (directory.join("process.json"), directory.join("pid"));
        fs::write(&spec_file, spec).map_err(|error| failed(&error))?;
        let listener = if terminal { Some(console_listener(directory)?) } else { None };
        let (spec_path, pid_path) = (spec_file.display().to_string(), pid_file.display().to_string());
        // A socket's name is short: from the bundle, where the program is run.
        let console = console_path(directory);
        let console = console.strip_prefix(&self.bundle).unwrap_or(&console).display().to_string();
        let mut arguments = vec!["--detach", "--process", &spec_path, "--pid-file", &pid_path];
        if terminal {
            arguments.extend(["--tty", "--console-socket", &console]);
        }
        arguments.push(id);
        self.run("exec", &arguments, Some(stdio))?;
        if let Some(listener) = listener {
            reporter.terminal(crate::terminal::receive(&listener)?.as_fd());
        }
        reporter.pid(read_pid(&pid_file)?);
        Ok(())
    }
}

/// Puts the directory of the criu asked for before the others of PATH.
fn find_criu(command: &mut Command, criu: &str) {
    let Some(directory) = Path::new(criu).parent().filter(|path| path.is_absolute()) else { return };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(all) {
        command.env("PATH", path);
    }
}

/// Has criu close connections as it restores them, since the pod has another address. The programs have no option for that, but
/// hand criu a file of options that an annotation names (runc, `docs/checkpoint-restore.md`; crun knows it as well).
fn close_connections(spec: &mut Spec, work: &Path) -> Result<(), Failure> {
    const ANNOTATION: &str = "org.criu.config";
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    if annotations.contains_key(ANNOTATION) {
        return Ok(());
    }
    let file = work.join("criu.conf");
    fs::write(&file, "tcp-close\n")
        .map_err(|error| Failure::doing(&format!("writing {}", file.display()), &error))?;
    annotations.insert(ANNOTATION.to_owned(), file.display().to_string());
    spec.set_annotations(Some(annotations));
    Ok(())
}

/// Has systemd make the cgroup where it makes those of its slices: the runtime is then given the path in the driver's own form, and
/// an option. Later commands know it from the runtime's state.
fn by_systemd(spec: &mut Spec) -> bool {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let scope = path.as_deref().and_then(Scope::of);
    match (scope, spec.linux_mut()) {
        (Some(scope), Some(linux)) => {
            linux.set_cgroups_path(Some(scope.as_cgroups_path().into()));
            true
        }
        _ => false,
    }
}

/// What comes before the runtime's command.
fn global(scoped: bool) -> &'static [&'static str] {
    if scoped { &["--systemd-cgroup"] } else { &[] }
}

/// Runs a command in a process group of its own; all of it is killed when the time is over.
fn bounded(mut command: Command, limit: Option<Duration>, path: &Path) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| Failure::doing(&format!("running {}", path.display()), error);
    let mut child = command.process_group(0).spawn().map_err(|error| failed(&error))?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let pidfd = sys::pidfd_open(pid).map_err(|error| failed(&error))?;
    let timeout = limit.map(|limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
    let mut fds = [libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    let ready = sys::poll(&mut fds, timeout);
    let late = matches!(ready, Ok(0));
    if late || ready.is_err() {
        let _ = sys::kill(-pid, libc::SIGKILL);
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    if late {
        let seconds = limit.unwrap_or_default().as_secs_f64();
        return Err(Failure::new(
            Code::DeadlineExceeded,
            format!("{} was not done within {seconds}s", path.display()),
        ));
    }
    if status.success() { Ok(()) } else { Err(Failure::internal(format!("{}: {status}", path.display()))) }
}

fn read_pid(path: &Path) -> Result<i32, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::doing(&format!("reading {}", path.display()), &error))?;
    text.trim().parse().map_err(|_| Failure::internal(format!("{}: no process id: {text:?}", path.display())))
}

/// The message of the last line at level error in a runtime's JSON log.
fn last_error(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|entry| entry.get("level").and_then(|level| level.as_str()) == Some("error"))
        .and_then(|entry| entry.get("msg").and_then(|message| message.as_str()).map(str::to_owned))
}
