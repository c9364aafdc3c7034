//! A container in the foreground: what it writes is shown until it ends; Ctrl-C stops it, a second one kills it.
//!
//! Without `-i` it is the log that is shown, from its beginning. With `-i` we were attached before the container started,
//! and what we read is its input.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::runtime::v1::ContainerStatus;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Launched, log_dir};
use crate::client::Client;
use crate::commands::attach;
use crate::commands::exec::exit_code;
use crate::failure;
use crate::logs::follow::Start;
use crate::logs::{self, print::Printer};
use crate::session::{Outcome, Session};

/// The signals that ask a program to end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// How many came while something else could not be left half done.
    pending: usize,
}

impl Signals {
    /// From now on they come here, and end nothing by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let on = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
            pending: 0,
        })
    }

    async fn next(&mut self) {
        if self.pending > 0 {
            self.pending -= 1;
            return;
        }
        self.arrival().await;
    }

    async fn arrival(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Lets `work` come to its end, so that nothing is left half made; the first signal meanwhile counts after that, a
    /// second one is an end without waiting.
    pub(crate) async fn unless_twice<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = self.arrival() => {
                    self.pending += 1;
                    if self.pending > 1 {
                        bail!("interrupted while {name} was made: `berth rm -f {name}` removes what is there of it");
                    }
                }
            }
        }
    }
}

/// How it came to an end for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It ended with this code.
    Exited(u8),
    /// The person left; it runs on.
    Left,
}

/// Shows what it writes until it has ended.
pub(crate) async fn until_ended(
    client: &mut Client,
    launched: &mut Launched,
    grace: Duration,
    signals: &mut Signals,
) -> Result<Ending> {
    let session = launched.session.take();
    let launched = &*launched;
    let mut watcher = client.clone();
    let ended = async {
        match session {
            Some((session, made)) => at_streams(&mut watcher, launched, session, made).await,
            None => {
                let mut printer = Printer::default();
                let log = Some(launched.log_directory.join(log_dir::FILE));
                let (id, start) = (&launched.container_id, Start::Beginning);
                let status = logs::until_ended(&mut watcher, id, log, start, &mut printer).await?;
                Ok(Watched::Ended(status.map(Box::new)))
            }
        }
    };
    tokio::pin!(ended);
    let mut stops = FuturesUnordered::new();
    let status = loop {
        tokio::select! {
            status = &mut ended => break status?,
            () = signals.next() => {
                let grace = if stops.is_empty() { grace } else { Duration::ZERO };
                let mut client = client.clone();
                stops.push(async move { client.stop_container(&launched.container_id, grace).await });
            }
            Some(stopped) = stops.next() => stopped.with_context(|| format!("stopping {}", launched.name))?,
        }
    };
    let status = match status {
        Watched::Left => return Ok(Ending::Left),
        Watched::Ended(None) => bail!("{} was removed while it ran", launched.name),
        Watched::Ended(Some(status)) => status,
    };
    if let Some(remark) = remark(&launched.name, &status) {
        failure::say(&remark);
    }
    Ok(Ending::Exited(exit_code(status.exit_code)))
}

/// What was seen of it last.
enum Watched {
    /// It ended so; without a status it was removed.
    Ended(Option<Box<ContainerStatus>>),
    /// The person left.
    Left,
}

async fn at_streams(
    client: &mut Client,
    launched: &Launched,
    session: Session,
    made: attach::Made,
) -> Result<Watched> {
    match attach::attend(session, made).await? {
        Outcome::Detached => return Ok(Watched::Left),
        Outcome::Failed(message) => return Err(anyhow!(message).context("attaching")),
        // A daemon that restarts takes the session along, not the container: its end is waited for all the same.
        Outcome::Lost | Outcome::Cut(_) => {
            failure::say(&format!("the connection was lost; `berth attach {}` attaches again", launched.name))
        }
        Outcome::Done | Outcome::Exit(_) => {}
    }
    let (id, mut printer) = (&launched.container_id, Printer::default());
    let status = logs::until_ended(client, id, None, Start::Beginning, &mut printer).await?;
    Ok(Watched::Ended(status.map(Box::new)))
}

/// What its exit code alone does not say.
fn remark(name: &str, status: &ContainerStatus) -> Option<String> {
    match status.reason.as_str() {
        "OOMKilled" => Some(format!("{name} was killed: it needed more memory than it may use")),
        "" | "Completed" | "Error" => None,
        reason if status.message.is_empty() => Some(format!("{name}: {reason}")),
        reason => Some(format!("{name}: {reason}: {}", status.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusual_ends_are_remarked_on() {
        let ended = |reason: &str, message: &str| {
            let status = ContainerStatus {
                reason: reason.into(),
                message: message.into(),
                ..ContainerStatus::default()
            };
            remark("web", &status)
        };
        assert_eq!(ended("Completed", ""), None);
        assert_eq!(ended("Error", "x"), None);
        assert!(ended("OOMKilled", "").is_some_and(|text| text.contains("memory")));
        assert_eq!(
            ended("ContainerCannotRun", "no such file").as_deref(),
            Some("web: ContainerCannotRun: no such file")
        );
    }
}
