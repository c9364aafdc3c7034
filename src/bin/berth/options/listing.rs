//! How lists are printed.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::filter::Filters;
use crate::output::{self, path::Template};

/// How a command prints what it has to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Options of every command that lists.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Listing {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Print ids only
    #[arg(short, long, conflicts_with = "output")]
    pub quiet: bool,
    /// Print ids and digests in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those where a field of -o json is so, as in state=exited or label=app=web; several must all hold
    #[arg(short, long, value_name = "FIELD=VALUE")]
    pub filter: Vec<String>,
    /// Print a line for each, of parts: '{.name} {.state}', as in `berth inspect --format`
    #[arg(long, value_name = "PATH", conflicts_with_all = ["output", "quiet"])]
    pub format: Option<String>,
}

impl Listing {
    /// What `--filter` asks for.
    pub(crate) fn filters(&self) -> Result<Filters> {
        Filters::parse(&self.filter)
    }

    /// Prints for programs, or by `--format`, if that is asked for.
    pub(crate) fn print<T: Serialize>(&self, views: &[T]) -> Result<bool> {
        if let Some(format) = &self.format {
            let format = Template::parse(format).context("--format")?;
            for view in views {
                let line = format.apply(&serde_json::to_value(view)?).context("--format")?;
                output::print_line(&line)?;
            }
            return Ok(true);
        }
        if self.output == Format::Json {
            output::print_json(views)?;
        }
        Ok(self.output == Format::Json)
    }
}
