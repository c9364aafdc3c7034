//! What the daemon says of itself: a log of structured lines on standard error, as text or JSON, with a level that can
//! change while it runs, and traces for who collects them.

mod traces;

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use traces::Traces;
pub(crate) use traces::{Place, TRACEPARENT, answered, called, traceparent};

/// The target of what the ttrpc library logs.
const TTRPC: &str = "ttrpc";

/// Holds the level, and sends traces.
#[derive(Clone, Debug)]
pub struct Telemetry {
    level: reload::Handle<Targets, Registry>,
    traces: Option<Traces>,
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
    /// Installs the logger of this process, and what sends traces if the environment asks for that: where it asks for what
    /// can't be had, that is logged. To be called where a tokio runtime is entered.
    pub fn install(log: &Log) -> Result<Self, Error> {
        let (filter, level) = reload::Layer::new(targets(&log.level)?);
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let lines = match log.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let (traces, refused) = match Traces::from_environment() {
            Ok(traces) => (traces, None),
            Err(error) => (None, Some(error)),
        };
        let spans = traces.as_ref().map(Traces::layer);
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        if let Some(error) = refused {
            tracing::error!(error = crate::error::chain(&error), "no traces are sent");
        }
        Ok(Self { level, traces })
    }

    /// Sends what is left of the traces.
    pub fn end(&self) {
        if let Some(traces) = &self.traces {
            traces.end();
        }
    }

    /// Sets another level.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        Ok(self.level.reload(targets(level)?)?)
    }
}

/// What is logged at a level. ttrpc calls it an error of its own when a peer leaves before it has read all, as every plugin and shim
/// does that ends: who called says what it means. It is heard again where its target is named, or from `debug` on.
fn targets(level: &str) -> Result<Targets, Error> {
    let targets: Targets =
        level.parse().map_err(|source| Error::Level { level: level.to_owned(), source })?;
    let named = targets.iter().any(|(target, _)| target.starts_with(TTRPC));
    let all = targets.default_level().is_some_and(|level| level >= LevelFilter::DEBUG);
    Ok(if named || all { targets } else { targets.with_target(TTRPC, LevelFilter::OFF) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tracing::Level;

    use super::targets;

    #[test]
    fn peers_that_leave_are_no_errors_unless_they_are_asked_for() {
        const CONNECTION: &str = "ttrpc::asynchronous::connection";
        for (level, heard) in
            [("info", false), ("berth=debug", false), ("warn,ttrpc=error", true), ("debug", true)]
        {
            let targets = targets(level).unwrap();
            assert_eq!(targets.would_enable(CONNECTION, &Level::ERROR), heard, "{level}");
            assert!(targets.would_enable("berth::pod", &Level::ERROR), "{level}");
        }
        assert!(targets("berth=loud").is_err());
    }
}
