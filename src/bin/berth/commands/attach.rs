//! `berth attach`.

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::runtime::v1::{AttachRequest, ContainerState};
use clap::Args;
use tonic::Code;

use crate::client::Client;
use crate::commands::exec::exit_code;
use crate::failure::{self, Answer, ExitCodeExt};
use crate::logs::follow::Start;
use crate::logs::{self, print::Printer};
use crate::names::{Names, container_name};
use crate::session::{Outcome, Session, terminal};

/// Options of `attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Only watch: pass nothing on to its standard input
    #[arg(long)]
    no_stdin: bool,
    /// The container: id, unique prefix of it, name, or POD/NAME
    container: String,
}

/// How a container was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// With standard input.
    pub stdin: bool,
    /// With a terminal.
    pub tty: bool,
}

impl Attach {
    /// Shows what the container prints from now on, until it ends (its code is ours) or Ctrl-P Ctrl-Q is typed.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        self.attend(address).await.or_exit(failure::DAEMON)
    }

    async fn attend(&self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let name = container_name(container).to_owned();
        if container.state() != ContainerState::ContainerRunning {
            let state = crate::view::container_state(container.state());
            bail!(
                "container {name} is {state}: there is nothing to attach to; `berth logs {name}` shows what it wrote"
            );
        }
        let id = container.id.clone();
        let made = made(&mut client, &id).await?;
        let made = Made { stdin: made.stdin && !self.no_stdin, ..made };
        if made.tty && made.stdin {
            terminal::check().context("this container has a terminal; --no-stdin only watches it")?;
        }
        let session = open(&mut client, &id, made).await.with_context(|| format!("attaching to {name}"))?;
        let attended = attend(session, made);
        let outcome = match made.tty && made.stdin {
            true => terminal::unless_signalled(attended).await?,
            false => attended.await?,
        };
        match outcome {
            Outcome::Detached => Ok(0),
            Outcome::Failed(message) => Err(anyhow!(message).context(format!("attaching to {name}"))),
            Outcome::Cut(message) => Err(anyhow!(message).context(format!("attached to {name}"))),
            // Its streams end before the daemon has heard of its end.
            Outcome::Done | Outcome::Exit(_) => {
                let mut printer = Printer::default();
                let ended = logs::until_ended(&mut client, &id, None, Start::Beginning, &mut printer);
                match ended.await? {
                    Some(status) => Ok(exit_code(status.exit_code)),
                    None => bail!("{name} was removed while it ran"),
                }
            }
            Outcome::Lost => ended(&mut client, &id, &name).await,
        }
    }
}

/// What the container was made with.
async fn made(client: &mut Client, id: &str) -> Result<Made> {
    let info = client.container_status(id, true).await?.info;
    let info = info.get("info").context("berthd does not say how the container was made")?;
    let info: serde_json::Value = serde_json::from_str(info).context("reading how the container was made")?;
    let flag = |name: &str| info.pointer(&format!("/config/{name}")).and_then(serde_json::Value::as_bool);
    Ok(Made { stdin: flag("stdin").unwrap_or(false), tty: flag("tty").unwrap_or(false) })
}

/// Attaches to a container.
pub(crate) async fn open(client: &mut Client, id: &str, made: Made) -> Result<Session> {
    let request = AttachRequest {
        container_id: id.to_owned(),
        stdin: made.stdin,
        tty: made.tty,
        stdout: true,
        stderr: !made.tty,
    };
    let url = client.runtime.attach(request).await.answer()?.url;
    Session::open(&url).await
}

/// Is at the container's streams until it ends or the person leaves.
pub(crate) async fn attend(session: Session, made: Made) -> Result<Outcome> {
    let terminal = (made.tty && made.stdin).then(terminal::Terminal::take).transpose()?;
    session.attend(made.stdin, terminal.as_ref()).await
}

/// The exit code of a container to which the connection was lost, if that was its end.
async fn ended(client: &mut Client, id: &str, name: &str) -> Result<u8> {
    let status = match client.container_status(id, false).await {
        Err(error) if failure::refusal_code(&error) == Some(Code::Unavailable) => bail!(
            "berthd is gone, and the session with {name} with it; the container does not need it and runs on: attach again when \
             berthd is back"
        ),
        status => status?.status.unwrap_or_default(),
    };
    match status.state() {
        ContainerState::ContainerExited => Ok(exit_code(status.exit_code)),
        _ => bail!("the session with {name} ended, and the container runs on: attach again"),
    }
}
