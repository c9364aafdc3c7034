//! `berth completions`.

use anyhow::{Result, anyhow};
use clap::Args;
use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::output;

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints a script for the shell to read at its start. It calls this program for what can follow.
    pub(crate) fn execute(self) -> Result<u8> {
        let name = self.shell.to_string();
        let shells = Shells::builtins();
        let shell = shells.completer(&name).ok_or_else(|| anyhow!("no completions for {name}"))?;
        let mut text = Vec::new();
        shell.write_registration("COMPLETE", "berth", "berth", "berth", &mut text)?;
        output::print(&String::from_utf8_lossy(&text))?;
        Ok(0)
    }
}
