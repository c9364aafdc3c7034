//! `berth logs`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::client::Client;
use crate::logs::follow::{Follower, Start};
use crate::logs::{self, print::Printer};
use crate::names::{Names, container_name};
use crate::options::duration;

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The container: id, unique prefix of it, name, or POD/NAME
    container: String,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Start with so many lines from the end, or with all
    #[arg(short = 'n', long, value_name = "LINES", value_parser = start, default_value = "all", allow_negative_numbers = true)]
    tail: Start,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Leave out what is older: a length of time (10m), or a moment (RFC 3339, or seconds since 1970)
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
}

impl Logs {
    /// Prints the log: standard output to ours, standard error to ours.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let since = self.since.as_deref().map(duration::moment).transpose().context("--since")?;
        let mut printer = Printer::new(self.timestamps, since);
        let start = self.tail;
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let name = container_name(container);
        let response = client.container_status(&container.id, false).await;
        let status = response.with_context(|| format!("looking for {name}"))?.status;
        let path = match status.map(|status| status.log_path) {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            _ => bail!("container {name} has no log: it was made without a log path"),
        };
        if self.follow {
            logs::until_ended(&mut client, &container.id, Some(path), start, &mut printer).await?;
        } else {
            let mut follower = Follower::new(path.clone(), start);
            logs::print_new(&mut follower, &mut printer, true)?;
            if !follower.is_open() {
                return Err(anyhow!("the log of {name} is not there: {} was removed", path.display()));
            }
        }
        Ok(0)
    }
}

/// `all` and -1 are docker's and kubectl's words for the whole of it.
fn start(text: &str) -> Result<Start> {
    match text {
        "all" | "-1" => Ok(Start::Beginning),
        lines => match lines.parse() {
            Ok(count) => Ok(Start::Last(count)),
            Err(_) => bail!("`{lines}` is no number of lines: write one, or all"),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_whole_has_names() {
        for (text, expected) in [
            ("all", Start::Beginning),
            ("-1", Start::Beginning),
            ("3", Start::Last(3)),
            ("0", Start::Last(0)),
        ] {
            assert_eq!(start(text).unwrap(), expected, "{text}");
        }
        assert!(start("-2").unwrap_err().to_string().contains("or all"));
    }
}
