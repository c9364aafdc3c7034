//! What rooms count and time while they work. Assembly gives each room its part; all of it ends up in one Prometheus registry.
//!
//! What can be read off the rooms when somebody asks (how many pods there are) is not counted here: `server::observe` reads
//! it at each scrape. All names, with what they mean, are in `docs/metrics.md`.

mod pulls;
mod recoveries;
mod stages;
mod writes;

pub use pulls::{Pull, Pulls};
pub use recoveries::{Recoveries, Recovery};
pub use stages::{Stage, Stages};
pub(crate) use writes::Write;
pub use writes::Writes;

use crate::progress::Board;

/// The counting parts of all rooms.
#[derive(Clone, Debug)]
pub struct Meter {
    /// Steps of pods and containers.
    pub stages: Stages,
    /// Pulls of images.
    pub pulls: Pulls,
    /// Records that are written.
    pub writes: Writes,
    /// What was found amiss, and put right.
    pub recoveries: Recoveries,
    /// What is under way.
    pub board: Board,
}

impl Meter {
    /// Registers everything.
    ///
    /// # Errors
    /// When a name is taken in this registry.
    pub fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let board = Board::default();
        Ok(Self {
            stages: Stages::new(registry, board.clone())?,
            pulls: Pulls::new(registry)?,
            writes: Writes::new(registry, board.clone())?,
            recoveries: Recoveries::new(registry)?,
            board,
        })
    }
}
