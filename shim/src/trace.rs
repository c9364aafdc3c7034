//! Collects the errors that libcontainer logs on its way, and sends them along with the result: its error values often
//! lack the path or the cause.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::job::Reporter;
use crate::status::{Code, Failure};
use crate::timing;

struct Reports {
    reporter: Reporter,
    /// Whether somebody wants to know when what is done.
    timed: bool,
}

/// What libcontainer 0.7 logs, at level DEBUG, between namespaces and mounts.
const MOUNTS: &str = "prepare rootfs";

/// What libcontainer 0.7 logs when the kernel refuses a value that the container's configuration asked for.
const ASKED: [&str; 7] = [
    "failed to apply cgroup",
    "failed to set rlimit",
    "failed to set sysctl",
    "failed to set hostname",
    "failed to set domainname",
    "failed to set io_priority",
    "error setting scheduler",
];

/// Where the process is to start: libcontainer's errors do not name it.
static WORKING_DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Names the directory that "failed to chdir" is about.
pub(crate) fn working_directory(path: &Path) {
    let _ = WORKING_DIRECTORY.set(path.to_owned());
}

/// From here on, errors logged in this process (and in those it forks) go to the shim. `timed`: the time of mounts is noted.
pub(crate) fn report_errors(reporter: &Reporter, timed: bool) {
    if let Ok(reporter) = reporter.duplicate() {
        let _ = tracing::subscriber::set_global_default(Reports { reporter, timed });
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?} "));
        } else {
            let _ = write!(self.0, "{}={value:?} ", field.name());
        }
    }
}

impl Subscriber for Reports {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let mounts =
            || *metadata.level() == Level::DEBUG && metadata.target().starts_with("libcontainer::rootfs");
        *metadata.level() == Level::ERROR || self.timed && mounts()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let line = line.0.trim_end();
        if *event.metadata().level() != Level::ERROR {
            if line.starts_with(MOUNTS) {
                timing::mounts_begin();
            }
            return;
        }
        self.reporter.trace(line);
        if ASKED.iter().any(|asked| line.starts_with(asked)) {
            self.reporter.code(Code::FailedPrecondition);
        }
        if let Some(fields) = line.strip_prefix("failed to chdir ") {
            // A file, or closed to the user: what was asked for does not fit the image.
            let directory =
                WORKING_DIRECTORY.get().map(|path| path.display().to_string()).unwrap_or_default();
            let error =
                |field: &str| field.strip_prefix("e=").or(field.strip_prefix("err=")).map(str::to_owned);
            let why = fields.split(' ').find_map(error).unwrap_or_default();
            let message = format!("the working directory {directory:?} can't be entered: {why}");
            self.reporter.reason(&Failure::new(Code::FailedPrecondition, message));
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
