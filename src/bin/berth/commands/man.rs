//! `berth man`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};

/// Options of `man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory, as /usr/local/share/man/man1; made when it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    /// Writes a page for a program and one for each command: `berth-run.1`.
    pub(crate) fn execute(self, program: Command) -> Result<u8> {
        let writing = || format!("writing manual pages into {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(writing)?;
        clap_mangen::generate_to(program, &self.directory).with_context(writing)?;
        Ok(0)
    }
}
