//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Classify, Kind};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// An option of the command line, such as `--root`.
    CommandLine(&'static str),
    /// A line of a file, counted from 1.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::CommandLine(option) => f.write_str(option),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One thing that is wrong: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// reading {path}
    #[error("reading {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why it can't be read.
        source: std::io::Error,
    },
    /// The values are wrong; all of them are listed, one a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::NotFound,
            Error::Read { .. } => Kind::Internal,
            Error::Invalid(_) => Kind::InvalidArgument,
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// " (did you mean `x`?)" for the nearest of some valid names, or the list of them when none is near.
pub(crate) fn suggestion(wrong: &str, valid: &[&str]) -> String {
    let nearest = valid
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&wrong.to_lowercase(), name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((score, name)) if score >= 0.5 => format!(" (did you mean `{name}`?)"),
        _ if valid.is_empty() => String::new(),
        _ => format!(" (valid: {})", valid.join(", ")),
    }
}
