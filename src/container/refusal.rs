//! What they say who may keep a pod or a container from its next step.

use crate::error::{Classify, Kind};

/// A step in the life of a pod or a container was refused by somebody who has a say in it.
#[derive(Debug, thiserror::Error)]
#[error("{who} refuses {step}: {reason}")]
pub struct Refusal {
    /// Who refuses.
    pub who: String,
    /// Which step.
    pub step: &'static str,
    /// In their own words.
    pub reason: String,
}

impl Classify for Refusal {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}
