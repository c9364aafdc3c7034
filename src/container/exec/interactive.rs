//! Running another command in a container with somebody at the other end of its streams.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

use super::{Error, Guard, output_pipe, path_of, process};
use crate::container::ContainerSnapshot;
use crate::shim::{ExecStdio, Shim};

/// Which streams the command gets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    /// Standard input.
    pub(crate) stdin: bool,
    /// Standard output, or all of a terminal's.
    pub(crate) stdout: bool,
    /// Standard error; a terminal has none of its own.
    pub(crate) stderr: bool,
    /// Whether it gets a terminal.
    pub(crate) tty: bool,
    /// The terminal's columns and rows, when known from the start.
    pub(crate) size: Option<(u32, u32)>,
}

/// A running command. When dropped, all it started is killed.
#[derive(Debug)]
pub(crate) struct Interactive {
    /// What is written here it reads.
    pub(crate) stdin: Option<pipe::Sender>,
    /// What it prints.
    pub(crate) stdout: Option<pipe::Receiver>,
    /// What it prints as errors.
    pub(crate) stderr: Option<pipe::Receiver>,
    guard: Guard,
    shim: Shim,
}

impl Interactive {
    /// Waits until it has ended; returns its exit code as a shell would report it.
    pub(crate) async fn wait(&self) -> Result<i32, Error> {
        let status = self.shim.wait(&self.guard.exec).await?;
        Ok(i32::try_from(status).unwrap_or(255))
    }

    /// Sets the size of its terminal.
    pub(crate) async fn resize(&self, columns: u32, rows: u32) -> Result<(), Error> {
        Ok(self.shim.resize(&self.guard.exec, columns, rows).await?)
    }

    /// Its standard input ends once our writing end is dropped, too.
    pub(crate) async fn close_stdin(&self) -> Result<(), Error> {
        Ok(self.shim.close_stdin(&self.guard.exec).await?)
    }

    /// Frees it in the shim, after it has ended.
    pub(crate) fn ended(mut self) {
        self.guard.ended();
    }

    /// Asks all of it to hang up, as a terminal that goes away does; kills what is still there after `grace`.
    pub(crate) async fn hang_up(mut self, grace: Duration) {
        drop((self.stdin.take(), self.stdout.take(), self.stderr.take()));
        let asked = async {
            self.close_stdin().await?;
            self.shim.kill(&self.guard.exec, libc::SIGHUP, true).await?;
            self.wait().await
        };
        match tokio::time::timeout(grace, asked).await {
            Ok(Ok(_)) => self.guard.ended(),
            // Dropping it kills.
            Ok(Err(error)) => tracing::debug!(exec = self.guard.exec, %error, "hanging up an exec"),
            Err(_) => {}
        }
    }
}

/// Starts `command` in the running container.
///
/// # Errors
/// [`Error::Shim`] when it can't be run, with the command's name.
pub(crate) async fn exec_start(
    container: &ContainerSnapshot,
    shim: &Shim,
    exec: String,
    command: Vec<String>,
    streams: Streams,
) -> Result<Interactive, Error> {
    let process = process(container, command, streams.tty, streams.size)?;
    let (mut stdio, mut handed) = (ExecStdio { terminal: streams.tty, ..Default::default() }, Vec::new());
    let stdin = if streams.stdin {
        let (reader, writer) = input_pipe()?;
        stdio.stdin = path_of(&reader);
        handed.push(reader);
        Some(writer)
    } else {
        None
    };
    let mut output = |wanted: bool, path: &mut String| -> Result<Option<pipe::Receiver>, Error> {
        if !wanted {
            return Ok(None);
        }
        let (reader, writer) = output_pipe()?;
        *path = path_of(&writer);
        handed.push(writer);
        Ok(Some(reader))
    };
    let stdout = output(streams.stdout, &mut stdio.stdout)?;
    let stderr = output(streams.stderr && !streams.tty, &mut stdio.stderr)?;
    let mut guard = Guard::exec(shim, exec, process, stdio, handed).await?;
    guard.start().await?;
    Ok(Interactive { stdin, stdout, stderr, guard, shim: shim.clone() })
}

fn input_pipe() -> Result<(OwnedFd, pipe::Sender), Error> {
    let failed = |source| Error::Path { action: "making a pipe for", path: "exec".into(), source };
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    Ok((reader, pipe::Sender::from_owned_fd(writer).map_err(failed)?))
}
