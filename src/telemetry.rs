//! The daemon's own log: structured lines on standard error, as text or JSON, with a level that can change while it runs.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// Holds the level.
#[derive(Clone, Debug)]
pub struct Telemetry {
    level: reload::Handle<Targets, Registry>,
}

/// Why logging can't be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// parsing the level
    #[error("log level {level:?}: {source}")]
    Level {
        /// As configured.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// setting the level
    #[error("setting the log level: {0}")]
    Reload(#[from] reload::Error),
    /// installing the logger
    #[error("installing the logger: {0}")]
    Install(#[from] TryInitError),
}

impl Telemetry {
    /// Installs the logger of this process.
    pub fn install(log: &Log) -> Result<Self, Error> {
        let (filter, level) = reload::Layer::new(targets(&log.level)?);
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let lines = match log.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).try_init()?;
        Ok(Self { level })
    }

    /// Sets another level.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        Ok(self.level.reload(targets(level)?)?)
    }
}

fn targets(level: &str) -> Result<Targets, Error> {
    level.parse().map_err(|source| Error::Level { level: level.to_owned(), source })
}
