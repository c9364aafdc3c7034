//! `berth exec`.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{ContainerState, ExecSyncRequest, ExecSyncResponse};
use clap::Args;

use crate::client::Client;
use crate::failure::{self, Answer, ExitCodeExt};
use crate::names::{Names, container_name};
use crate::options::duration;

/// Options of `exec`.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// End the command after so long, as in 10 (seconds) or 2m; 0: never
    #[arg(long, value_name = "TIME", default_value = "0")]
    timeout: String,
    /// Keep standard input open (not there yet)
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal (not there yet)
    #[arg(short, long)]
    tty: bool,
    /// The container: its id, a unique prefix of that, its name, or POD/NAME
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Executes, prints what the command wrote once it ended, exits as it did.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        if self.interactive || self.tty {
            bail!(
                "-i and -t are not there yet: berthd has no interactive streaming; without them `berth exec` runs a \
                 command and shows what it wrote"
            );
        }
        let timeout = duration::parse(&self.timeout).context("--timeout")?;
        // The CRI counts whole seconds, and 0 means no limit: a shorter time is one second.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let response = self.ask(address, timeout).await.or_exit(failure::DAEMON)?;
        io::stderr().write_all(&response.stderr)?;
        let mut out = io::stdout().lock();
        out.write_all(&response.stdout)?;
        out.flush()?;
        Ok(exit_code(response.exit_code))
    }

    async fn ask(&self, address: &str, timeout: i64) -> Result<ExecSyncResponse> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let name = container_name(container);
        if container.state() != ContainerState::ContainerRunning {
            bail!(
                "container {name} is {}: nothing can be executed in it",
                crate::view::container_state(container.state())
            );
        }
        let request =
            ExecSyncRequest { container_id: container.id.clone(), cmd: self.command.clone(), timeout };
        let answer = client.runtime.exec_sync(request).await.answer();
        answer.map_err(|refusal| {
            let code = failure::start_failure_code(&refusal.to_string());
            let program = self.command.first().map_or("", String::as_str);
            let error = Err::<(), _>(refusal).with_context(|| format!("executing {program} in {name}"));
            error.or_exit(code).err().unwrap_or_else(|| anyhow::anyhow!("executing {program}"))
        })
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
