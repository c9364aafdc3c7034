//! Errors as a person meets them: one line that says what to do, and an exit code.

use std::error::Error as _;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::anyhow;
use tonic::{Code, Response, Status};

use crate::output;

/// It failed.
const GENERAL: u8 = 1;
/// `run` and `exec`: the daemon refused.
pub(crate) const DAEMON: u8 = 125;
/// `run` and `exec`: the command is there, but can't be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// `run` and `exec`: there is no such command.
pub(crate) const NO_COMMAND: u8 = 127;
/// What a shell shows for a program that a signal ended: this and the signal's number.
pub(crate) const SIGNALLED: u8 = 128;
/// The same for SIGPIPE.
const BROKEN_PIPE: u8 = SIGNALLED + 13;

/// What the daemon answered instead of doing it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub code: Code,
    message: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            // Statuses with a source are made here, of what happened to the connection.
            Code::Unknown | Code::Internal | Code::Cancelled if status.source().is_some() => {
                Code::Unavailable
            }
            code => code,
        };
        let said = match status.message() {
            "" => code.description(),
            message => message,
        };
        let message = match code {
            Code::Unimplemented => format!("this berthd can't do that yet: {said}"),
            Code::Unavailable if status.source().is_some() => {
                format!(
                    "the daemon went away ({said}): is it being restarted? Try again when `berth info` answers"
                )
            }
            _ => said.to_owned(),
        };
        Self { code, message }
    }
}

/// Takes the message out of an answer, and makes a [`Refusal`] of a status.
pub(crate) trait Answer<T> {
    /// The message.
    fn answer(self) -> Result<T, Refusal>;
}

impl<T> Answer<T> for Result<Response<T>, Status> {
    fn answer(self) -> Result<T, Refusal> {
        Ok(self?.into_inner())
    }
}

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub(crate) struct Coded {
    code: u8,
    /// Not its source in the sense of the trait: its text is the whole of ours, and would be shown twice.
    error: anyhow::Error,
}

/// Gives errors an exit code.
pub(crate) trait ExitCodeExt<T> {
    /// Exit with this code if it is an error (a code given before stands).
    fn or_exit(self, code: u8) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> ExitCodeExt<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            if error.is::<Coded>() { error } else { anyhow!(Coded { code, error }) }
        })
    }
}

/// The gRPC code of an error that a daemon's answer caused.
pub(crate) fn refusal_code(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| cause.downcast_ref::<Refusal>()).map(|refusal| refusal.code)
}

/// What `run` and `exec` exit with when the daemon could not start a command, judged by what it said: the CRI has no
/// field for it. 127 for a command that is not there, 126 for one that is no program.
pub(crate) fn start_failure_code(message: &str) -> u8 {
    let message = message.to_ascii_lowercase();
    let says = |needles: &[&str]| needles.iter().any(|needle| message.contains(needle));
    let about_command = says(&["exec", "command", "entrypoint", "$path"]);
    if !about_command {
        DAEMON
    } else if says(&[
        "permission denied",
        "not executable",
        "is a directory",
        "exec format error",
        "eacces",
        "enoexec",
    ]) {
        NOT_EXECUTABLE
    } else if says(&["not found", "no such file", "enoent"]) {
        NO_COMMAND
    } else {
        DAEMON
    }
}

/// Several things were asked for and some failed: each error was printed already.
pub(crate) fn summary(failed: Vec<anyhow::Error>) -> anyhow::Result<u8> {
    for error in &failed {
        say(&format!("{error:#}"));
    }
    Ok(if failed.is_empty() { 0 } else { GENERAL })
}

/// Prints the error and says what to exit with. A reader of our output that went away is no error worth a word.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::from(BROKEN_PIPE);
    }
    say(&format!("{error:#}"));
    ExitCode::from(error.downcast_ref::<Coded>().map_or(GENERAL, |coded| coded.code))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<Coded>().map_or(error, |coded| &coded.error);
    cause.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Says something to the person, on standard error, in our name. Nobody may be there to read it.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "berth: {}", line(text));
}

/// All of it in one line. What the daemon says holds names of containers and commands: they must not speak to the terminal.
fn line(text: &str) -> String {
    let parts: Vec<&str> = text.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect();
    output::plain(&parts.join(" "))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_are_one_line() {
        let error = anyhow!("first\nsecond").context("pulling nginx");
        assert_eq!(line(&format!("{error:#}")), "pulling nginx: first second");
    }

    #[test]
    fn names_in_errors_do_not_speak_to_the_terminal() {
        let error = anyhow!("exec: \"\u{1b}]0;mine\u{7}\": not found").context("starting web");
        assert_eq!(line(&format!("{error:#}")), "starting web: exec: \"?]0;mine?\": not found");
    }

    #[test]
    fn a_refusal_reads_as_what_the_daemon_said() {
        let refused: Result<Response<()>, Status> = Err(Status::not_found("no such pod: x"));
        let error = anyhow::Error::from(refused.answer().err().unwrap_or_else(|| Status::ok("").into()));
        assert_eq!(error.to_string(), "no such pod: x");
        assert_eq!(refusal_code(&error.context("stopping x")), Some(Code::NotFound));
    }

    #[test]
    fn an_empty_message_still_says_something() {
        assert!(!Refusal::from(Status::internal("")).to_string().is_empty());
    }

    #[test]
    fn the_first_exit_code_stands() {
        let result: anyhow::Result<()> = Err(anyhow!("x")).or_exit(127).or_exit(125);
        let error = result.err().unwrap_or_else(|| anyhow!("none"));
        assert_eq!(error.downcast_ref::<Coded>().map(|coded| coded.code), Some(127));
        assert_eq!(line(&format!("{error:#}")), "x", "said once");
    }

    #[test]
    fn broken_pipes_are_seen_through_context_and_codes() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(pipe()).context("writing")));
        let coded: anyhow::Result<()> = Err(pipe()).context("writing").or_exit(125);
        assert!(coded.is_err_and(|error| is_broken_pipe(&error)));
    }

    #[test]
    fn start_failures_have_the_codes_shells_use() {
        assert_eq!(start_failure_code("executable file `frob` not found in $PATH"), NO_COMMAND);
        assert_eq!(start_failure_code("exec /frob: No such file or directory"), NO_COMMAND);
        assert_eq!(start_failure_code("exec /etc/passwd: Permission denied"), NOT_EXECUTABLE);
        assert_eq!(start_failure_code("exec: exec format error"), NOT_EXECUTABLE);
        assert_eq!(start_failure_code("no address left in 10.85.0.0/16"), DAEMON);
        assert_eq!(start_failure_code("mount source path /data not found"), DAEMON);
    }
}
