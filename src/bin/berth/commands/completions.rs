//! `berth completions`.

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Prints those of a program, for the shell to read at its start.
    pub(crate) fn execute(self, mut program: Command) -> Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut program, "berth", &mut text);
        output::print(&String::from_utf8_lossy(&text))?;
        Ok(0)
    }
}
