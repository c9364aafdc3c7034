//! `berth exec`.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{ContainerState, ExecRequest, ExecSyncRequest};
use clap::Args;

use crate::client::Client;
use crate::failure::{self, Answer, ExitCodeExt};
use crate::names::{Names, container_name};
use crate::options::duration;
use crate::session::{Outcome, Session, terminal};

/// Options of `exec`.
#[derive(Debug, Args)]
#[command(
    after_help = "It runs as the container's user, with its variables, in its directory: the CRI knows no others. `berth exec NAME env A=b sh \
    -c 'cd /x && …'` does what docker's -e and -w do."
)]
pub(crate) struct Exec {
    /// End the command after so long, as in 10 (seconds) or 2m, and show what it wrote then
    #[arg(long, value_name = "TIME", conflicts_with_all = ["interactive", "tty"])]
    timeout: Option<String>,
    /// Pass standard input on to it
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal; Ctrl-P Ctrl-Q leaves, which ends the command
    #[arg(short, long)]
    tty: bool,
    /// The container: id, unique prefix of it, name, or POD/NAME
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Executes with us at the command's streams, exits as it did.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let timeout = self.timeout.as_deref().map(duration::parse).transpose().context("--timeout")?;
        if self.tty {
            terminal::check()?;
        }
        let (mut client, id, name) = self.find(address).await.or_exit(failure::DAEMON)?;
        match timeout {
            // The CRI counts whole seconds, and 0 means no limit: a shorter time is one second.
            Some(timeout) if !timeout.is_zero() => {
                let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
                self.bounded(&mut client, id, &name, i64::try_from(seconds).unwrap_or(i64::MAX)).await
            }
            _ => self.streamed(&mut client, id, &name).await,
        }
    }

    /// The container, which must run.
    async fn find(&self, address: &str) -> Result<(Client, String, String)> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let name = container_name(container).to_owned();
        if container.state() != ContainerState::ContainerRunning {
            bail!(
                "container {name} is {}: nothing can be executed in it",
                crate::view::container_state(container.state())
            );
        }
        let id = container.id.clone();
        Ok((client, id, name))
    }

    async fn streamed(&self, client: &mut Client, id: String, name: &str) -> Result<u8> {
        let request = ExecRequest {
            container_id: id,
            cmd: self.command.clone(),
            tty: self.tty,
            stdin: self.interactive,
            stdout: true,
            // A terminal has one output.
            stderr: !self.tty,
        };
        let answer = client.runtime.exec(request).await.answer();
        let url = answer.with_context(|| format!("executing in {name}")).or_exit(failure::DAEMON)?.url;
        let session = Session::open(&url).await.or_exit(failure::DAEMON)?;
        let terminal = self.tty.then(terminal::Terminal::take).transpose()?;
        let attended = session.attend(self.interactive, terminal.as_ref());
        let outcome = match &terminal {
            Some(_) => terminal::unless_signalled(attended).await,
            None => attended.await,
        };
        drop(terminal);
        match outcome.or_exit(failure::DAEMON)? {
            Outcome::Done | Outcome::Detached => Ok(0),
            Outcome::Exit(code) => Ok(exit_code(code)),
            Outcome::Failed(message) => self.failed(name, anyhow::anyhow!(message)),
            Outcome::Cut(message) => self.failed(name, anyhow::anyhow!(message)),
            Outcome::Lost => {
                let text = "the connection to berthd was lost: was it killed? What was executed may go on; see `berth top` when \
                            berthd is back";
                self.failed(name, anyhow::anyhow!(text))
            }
        }
    }

    /// By ExecSync: the daemon ends the command in time, whatever becomes of us.
    async fn bounded(&self, client: &mut Client, id: String, name: &str, timeout: i64) -> Result<u8> {
        let request = ExecSyncRequest { container_id: id, cmd: self.command.clone(), timeout };
        let response = match client.runtime.exec_sync(request).await.answer() {
            Ok(response) => response,
            Err(refusal) => return self.failed(name, refusal.into()),
        };
        io::stderr().write_all(&response.stderr)?;
        let mut out = io::stdout().lock();
        out.write_all(&response.stdout)?;
        out.flush()?;
        Ok(exit_code(response.exit_code))
    }

    fn failed(&self, name: &str, error: anyhow::Error) -> Result<u8> {
        let code = failure::start_failure_code(&error.to_string());
        let program = self.command.first().map_or("", String::as_str);
        Err(error.context(format!("executing {program} in {name}"))).or_exit(code)
    }
}

/// A command's code as ours: they are a byte, as the kernel's.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_bytes() {
        assert_eq!([0, 1, 137, 255, 256, -1].map(exit_code), [0, 1, 137, 255, 255, 255]);
    }
}
