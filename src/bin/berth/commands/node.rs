//! `berth node`: Berth's files on a node.

mod api;
mod check;
mod install;
mod label;
mod uninstall;
mod wait;
mod watch;

use anyhow::{Result, anyhow};
use berth::node::Report;
use clap::Subcommand;

use crate::options::listing::Format;
use crate::output;
use crate::output::table::{Cell, Table, Tone};

/// What can be done with a node.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Put Berth's files on a node, and have its services use them
    Install(install::Install),
    /// Take off what was installed, and bring back what was there before
    Uninstall(uninstall::Uninstall),
    /// Check whether a node can run Berth
    Check(check::Check),
    /// Hold the files of a node against what was installed
    Verify(check::Verify),
    /// Stay beside an installation and answer for it over HTTP: /healthz, /readyz, /metrics
    Watch(Box<watch::Watch>),
    /// Wait until a DaemonSet is done on all nodes
    #[command(hide = true)]
    AwaitDaemonset(wait::Await),
}

impl Node {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        match self {
            Self::Install(install) => install.execute().await,
            Self::Uninstall(uninstall) => uninstall.execute(address).await,
            Self::Check(check) => check.execute(),
            Self::Verify(verify) => verify.execute(),
            Self::Watch(watch) => watch.execute().await,
            Self::AwaitDaemonset(wait) => wait.execute().await,
        }
    }
}

/// Prints what was, or would be, done.
fn tell(report: &Report, format: Format, dry: bool) -> Result<()> {
    if format == Format::Json {
        return output::print_json(report);
    }
    if !report.changes.is_empty() {
        let mut table = Table::new(&["WHAT", "PATH"]);
        for change in &report.changes {
            table.row([change.what.word().into(), change.path.as_str().into()]);
        }
        output::print(&table.render(output::colours()))?;
    }
    let would = if dry { "would run" } else { "ran" };
    for line in &report.systemctl {
        output::print_line(&format!("{would}: systemctl {line}"))?;
    }
    for line in &report.left {
        output::print_line(&format!("left to do, as systemd does not run there: {line}"))?;
    }
    for note in &report.notes {
        output::print_line(&format!("note: {note}"))?;
    }
    if report.is_idle() {
        output::print_line("all is as it should be: nothing changed")?;
    }
    Ok(())
}

/// The whole of an error, each cause said once.
fn explain(error: &berth::node::Error) -> anyhow::Error {
    anyhow!(berth::error::chain(error))
}

/// A cell for how well something is.
fn mark(text: &str, good: bool) -> Cell {
    Cell::toned(text, if good { Tone::Good } else { Tone::Bad })
}
