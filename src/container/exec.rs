//! Running another command in a container and collecting what it prints.
//!
//! The command's output goes into pipes of the daemon, which the shim opens through `/proc/<daemon>/fd`: there is no file
//! to make, and none to leave behind.

mod interactive;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use oci_spec::runtime::{BoxBuilder, Process};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::error::Error;
use super::snapshot::ContainerSnapshot;
use crate::shim::{ExecStdio, Shim};
pub(crate) use interactive::{Interactive, Streams, exec_start};

/// Most bytes of one stream that are kept (16 MiB, as a CRI reply holds no more). The rest is read and dropped, so the
/// command does not block.
pub const MAX_OUTPUT: usize = 16 << 20;

/// After the command ended, somebody it left behind may hold its output open: how long to wait for him.
const DRAIN: Duration = Duration::from_millis(250);

/// What a command printed, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, at most [`MAX_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`MAX_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
    /// As a shell would report it.
    pub exit_code: i32,
}

/// Runs `command` in the running container.
///
/// # Errors
/// [`Error::ExecTimedOut`] when it does not end within `limit`: everything it started is then killed. [`Error::Shim`]
/// when it can't be run, with the command's name.
pub(crate) async fn exec_sync(
    container: &ContainerSnapshot,
    shim: &Shim,
    exec: String,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let name = command.first().cloned().unwrap_or_default();
    let process = process(container, command, false, None)?;
    let (stdout, stdout_writer) = output_pipe()?;
    let (stderr, stderr_writer) = output_pipe()?;
    let stdio =
        ExecStdio { stdout: path_of(&stdout_writer), stderr: path_of(&stderr_writer), ..Default::default() };
    let mut guard = Guard::exec(shim, exec, process, stdio, vec![stdout_writer, stderr_writer]).await?;
    guard.start().await?;

    let (mut kept_out, mut kept_err) = (Vec::new(), Vec::new());
    let run = async {
        let mut reading =
            std::pin::pin!(async { tokio::join!(read(stdout, &mut kept_out), read(stderr, &mut kept_err)) });
        let waiting = shim.wait(&guard.exec);
        tokio::pin!(waiting);
        let status = tokio::select! {
            status = &mut waiting => status,
            // The command closed its output early, or the pipes failed; its end still counts.
            _ = &mut reading => return waiting.await,
        }?;
        let _ = tokio::time::timeout(DRAIN, reading).await;
        Ok(status)
    };
    let status = match limit {
        Some(limit) => tokio::time::timeout(limit, run).await.map_err(|_| Error::ExecTimedOut {
            id: container.id.clone(),
            command: name,
            limit,
        })?,
        None => run.await,
    }?;
    guard.ended();
    Ok(ExecOutput { stdout: kept_out, stderr: kept_err, exit_code: i32::try_from(status).unwrap_or(255) })
}

/// Frees an exec in its shim; kills it first unless it has ended.
#[derive(Debug)]
struct Guard {
    shim: Option<Shim>,
    exec: String,
    /// The ends of the streams that the shim opens by their numbers here. Until it has, or has no exec any more, no other file may
    /// get these numbers: the exec's output would come out there.
    handed: Vec<OwnedFd>,
}

impl Guard {
    /// Makes the exec known to the shim. From the moment it is asked, whatever happens, also when this future is dropped before
    /// the answer, the exec is freed: a shim has places for so many.
    async fn exec(
        shim: &Shim,
        exec: String,
        process: Vec<u8>,
        stdio: ExecStdio,
        handed: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let mut guard = Self { shim: Some(shim.clone()), exec, handed };
        let known = shim.exec(&guard.exec, process, stdio).await;
        if known.as_ref().is_err_and(|error| !matches!(error, crate::shim::Error::TimedOut { .. })) {
            guard.shim = None;
        }
        known?;
        Ok(guard)
    }

    /// Has the shim start it, which opens its streams.
    async fn start(&mut self) -> Result<(), Error> {
        if let Some(shim) = &self.shim {
            shim.start(&self.exec).await?;
        }
        self.handed.clear();
        Ok(())
    }

    /// The caller has his answer: he does not wait for the exec's cgroup to go.
    fn ended(&mut self) {
        let Some(shim) = self.shim.take() else { return };
        let exec = std::mem::take(&mut self.exec);
        tokio::spawn(async move {
            if let Err(error) = shim.delete(&exec).await {
                tracing::debug!(exec, error = %error, "freeing an exec");
            }
        });
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(shim) = self.shim.take() else { return };
        let (exec, handed) = (std::mem::take(&mut self.exec), std::mem::take(&mut self.handed));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let _handed = handed;
            let _ = shim.kill(&exec, libc::SIGKILL, true).await;
            let _ = tokio::time::timeout(Duration::from_secs(10), shim.wait(&exec)).await;
            if let Err(error) = shim.delete(&exec).await {
                tracing::debug!(exec, error = %error, "freeing a killed exec");
            }
        });
    }
}

/// The container's own process with another command: same user, environment, capabilities. `size` are the columns and rows of
/// its terminal.
fn process(
    container: &ContainerSnapshot,
    command: Vec<String>,
    terminal: bool,
    size: Option<(u32, u32)>,
) -> Result<Vec<u8>, Error> {
    let path = container.bundle.join("process.json");
    let bytes =
        fs::read(&path).map_err(|source| Error::Path { action: "reading", path: path.clone(), source })?;
    let json = |source| Error::Json { action: "reading", path: path.clone(), source };
    let mut process: Process = serde_json::from_slice(&bytes).map_err(json)?;
    process.set_args(Some(command));
    process.set_terminal(Some(terminal));
    process.set_console_size(
        size.and_then(|(columns, rows)| BoxBuilder::default().width(columns).height(rows).build().ok()),
    );
    serde_json::to_vec(&process).map_err(json)
}

fn output_pipe() -> Result<(pipe::Receiver, OwnedFd), Error> {
    let failed = |source: io::Error| Error::Path { action: "making a pipe for", path: "exec".into(), source };
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    Ok((pipe::Receiver::from_owned_fd(reader).map_err(failed)?, writer))
}

fn path_of(writer: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd())
}

/// Reads to the end, keeping the first [`MAX_OUTPUT`] bytes.
async fn read(mut pipe: pipe::Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0u8; 16 << 10];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_past_the_bound_is_read_but_not_kept() {
        let (reader, writer) = output_pipe().unwrap();
        let path = path_of(&writer);
        let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
        drop(writer);
        let thread = std::thread::spawn(move || {
            let chunk = vec![7u8; 1 << 20];
            (0..17).for_each(|_| file.write_all(&chunk).unwrap());
        });
        let mut kept = Vec::new();
        read(reader, &mut kept).await;
        thread.join().unwrap();
        assert_eq!(kept.len(), MAX_OUTPUT);
    }
}
