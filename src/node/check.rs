//! Whether a node can run Berth: looks at the kernel and the host that change nothing.

mod host;
mod kernel;

use serde::Serialize;

use super::{Error, HostRoot, Mode};

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Berth runs, with less, or something is worth a look.
    Warning,
    /// Berth can't run so.
    Missing,
    /// Something does not work, or is about to stop working.
    Wrong,
}

impl Level {
    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it stands.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing to do.
    pub advice: String,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: String::new() }
    }

    /// Worth a look.
    pub fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), advice: advice.into() }
    }

    /// Something does not work.
    pub fn wrong(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Wrong, found: found.into(), advice: advice.into() }
    }

    /// Whether somebody has to do something.
    pub fn is_bad(&self) -> bool {
        self.level >= Level::Missing
    }

    /// It does not work so.
    pub fn missing(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Missing, found: found.into(), advice: advice.into() }
    }
}

/// Looks at everything that Berth needs for a mode.
///
/// # Errors
/// When the host's root can't be opened.
pub fn all(root: &HostRoot, mode: Mode) -> Result<Vec<Finding>, Error> {
    let mut findings = kernel::all(root, mode);
    findings.extend(host::all(root, mode)?);
    Ok(findings)
}

/// The part of it that holds for a node which runs Berth already, however it got there.
///
/// # Errors
/// When the host can't be read.
pub fn standing(root: &HostRoot) -> Result<Vec<Finding>, Error> {
    let mut findings = kernel::all(root, Mode::Node);
    findings.extend(host::standing(root)?);
    Ok(findings)
}
