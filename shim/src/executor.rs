//! The last step of a container's first process: what libcontainer calls to check and to execute the command.
//!
//! The check runs inside the container's root as the container's user, before the container counts as created, so that a
//! command that is missing or not executable fails the creation with a message that names it. What only exec itself finds out ends
//! the process with 127 (not found) or 126 (not executable), as a shell does. Before the check the process gives up what the spec says
//! it shall not have.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{Process, Spec};

use crate::adapt::Restrictions;
use crate::job::Reporter;
use crate::selinux;
use crate::status::{Code, Failure};
use crate::sys;
use crate::timing;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Resolves a command as execvp would, in the calling process' root; the error names the command.
pub(crate) fn resolve(command: &str, environment: &[String]) -> Result<CString, String> {
    if command.is_empty() {
        return Err("exec: no command".to_owned());
    }
    let failed = |why: &str| format!("exec: \"{command}\": {why}");
    let check = |path: &PathBuf| -> Result<CString, io::Error> {
        let metadata = path.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        let name = CString::new(path.as_os_str().as_encoded_bytes())?;
        sys::may_execute(&name)?;
        Ok(name)
    };
    let explain = |error: &io::Error, path: &str| match error.raw_os_error() {
        Some(libc::EACCES) => failed("permission denied"),
        Some(libc::EISDIR) => failed("is a directory"),
        Some(libc::ENOENT | libc::ENOTDIR) => failed(&format!("stat {path}: no such file or directory")),
        _ => failed(&error.to_string()),
    };
    if command.contains('/') {
        return check(&PathBuf::from(command)).map_err(|error| explain(&error, command));
    }
    let search =
        environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for directory in search.split(':') {
        let path = PathBuf::from(if directory.is_empty() { "." } else { directory }).join(command);
        match check(&path) {
            Ok(name) => return Ok(name),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                denied = Some(failed("permission denied"))
            }
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| failed("executable file not found in $PATH")))
}

/// Refuses what no program can be given: a text with a zero byte in it would reach it cut off.
fn check_texts(process: &Process) -> Result<(), String> {
    let lists = [("argument", process.args()), ("variable", process.env())];
    for (what, list) in lists {
        if let Some(text) = list.iter().flatten().find(|text| text.contains('\0')) {
            return Err(format!("exec: the {what} {text:?} has a zero byte in it"));
        }
    }
    Ok(())
}

/// Replaces the calling process by the command; returns what went wrong and the exit code that says so.
pub(crate) fn execute(process: &Process, home: Option<&str>) -> (String, i32) {
    if let Err(message) = check_texts(process) {
        return (message, 126);
    }
    let arguments: &[String] = process.args().as_deref().unwrap_or_default();
    let mut environment: Vec<String> = process.env().clone().unwrap_or_default();
    if let Some(home) = home.filter(|_| !environment.iter().any(|entry| entry.starts_with("HOME="))) {
        environment.push(format!("HOME={home}"));
    }
    let command = arguments.first().map(String::as_str).unwrap_or_default();
    let path = match resolve(command, &environment) {
        Ok(path) => path,
        Err(message) => {
            let code = if message.ends_with("permission denied") || message.ends_with("is a directory") {
                126
            } else {
                127
            };
            return (message, code);
        }
    };
    let strings = |list: &[String]| -> Vec<CString> {
        list.iter().filter_map(|item| CString::new(item.as_bytes()).ok()).collect()
    };
    let error = sys::execve(&path, &strings(arguments), &strings(&environment));
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    (format!("exec: \"{command}\": {error}"), code)
}

/// Sets the SELinux label, drops capabilities and loads the filter, in the order that each permits: without `no_new_privileges` loading needs a
/// capability, with it the filter comes last so that it need not allow what comes before.
pub(crate) fn restrict(restrictions: &Restrictions) -> Result<(), Failure> {
    if let Some(label) = &restrictions.label {
        selinux::label_exec(label)?;
    }
    confine(restrictions).map_err(Failure::internal)
}

fn confine(restrictions: &Restrictions) -> Result<(), String> {
    let load = || match &restrictions.filter {
        Some(filter) => filter.install().map_err(|error| format!("loading the seccomp filter: {error}")),
        None => Ok(()),
    };
    if !restrictions.no_new_privileges {
        load()?;
    }
    if let Some(wanted) = &restrictions.capabilities {
        let kernel = SyscallType::Linux.create_syscall();
        capabilities::reset_effective(kernel.as_ref())
            .and_then(|()| capabilities::drop_privileges(wanted, kernel.as_ref()))
            .map_err(|error| format!("setting capabilities: {error}"))?;
    }
    if restrictions.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(|error| format!("setting no_new_privs: {error}"))?;
        load()?;
    }
    Ok(())
}

/// Our executor, as libcontainer wants it.
#[derive(Debug)]
pub(crate) struct Command {
    reporter: Reporter,
    home: RefCell<Option<String>>,
    restrictions: Rc<Restrictions>,
    /// When libcontainer began, where somebody traces it.
    since: Option<u64>,
}

impl Command {
    pub(crate) fn new(reporter: Reporter, restrictions: Restrictions, since: Option<u64>) -> Self {
        Self { reporter, home: RefCell::default(), restrictions: Rc::new(restrictions), since }
    }
}

impl Clone for Command {
    fn clone(&self) -> Self {
        match self.reporter.duplicate() {
            Ok(reporter) => Self {
                reporter,
                home: self.home.clone(),
                restrictions: Rc::clone(&self.restrictions),
                since: self.since,
            },
            // Out of descriptors before the container exists: nothing sensible can follow.
            Err(_) => sys::exit_now(70),
        }
    }
}

impl Executor for Command {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let (message, code) = execute(process, self.home.borrow().as_deref());
        // The container's: it may be closed, or full.
        let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
        sys::exit_now(code)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // Before there is a filter that may forbid it.
        timing::first_process(&self.reporter, self.since);
        restrict(&self.restrictions).map_err(|failure| {
            self.reporter.reason(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })?;
        let process = spec.process().as_ref();
        let process = process
            .ok_or_else(|| ExecutorValidationError::ArgValidationError("no process in spec".into()))?;
        check_texts(process).map_err(|message| {
            self.reporter.reason(&Failure::new(Code::InvalidArgument, message.as_str()));
            ExecutorValidationError::ArgValidationError(message)
        })?;
        let command =
            process.args().as_ref().and_then(|arguments| arguments.first()).cloned().unwrap_or_default();
        resolve(&command, process.env().as_deref().unwrap_or_default()).map(|_| ()).map_err(|message| {
            // What the image holds does not suit what was asked of it: nothing of ours is at fault.
            self.reporter.reason(&Failure::new(Code::FailedPrecondition, message.as_str()));
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, environment: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve directly, in the order of the spec; only HOME may have been found by libcontainer.
        self.home.replace(environment.get("HOME").cloned());
        Ok(())
    }
}
