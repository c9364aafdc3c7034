//! How lists are printed.

use clap::{Args, ValueEnum};

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
#[derive(Clone, Copy, Debug, Args)]
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
}
