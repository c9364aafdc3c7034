//! What rooms count and time while they work. Assembly gives each room its part; all of it ends up in one Prometheus registry.
//!
//! What can be read off the rooms when somebody asks (how many pods there are) is not counted here: `server::observe` reads
//! it at each scrape. All names, with what they mean, are in `docs/metrics.md`.

mod pulls;
mod stages;

pub use pulls::{Pull, Pulls};
pub use stages::{Stage, Stages};

/// The counting parts of all rooms.
#[derive(Clone, Debug)]
pub struct Meter {
    /// Steps of pods and containers.
    pub stages: Stages,
    /// Pulls of images.
    pub pulls: Pulls,
}

impl Meter {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken in this registry.
    pub fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        Ok(Self { stages: Stages::new(registry)?, pulls: Pulls::new(registry)? })
    }
}
