//! What was not as the records say, and was put right: at start, and now and then.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

/// Something that was put right, or could not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// A pod or container that was half made or half removed, or that no record speaks of: removed.
    Undone,
    /// A network sandbox that is on record and not live: removed.
    Sandbox,
    /// An interface that nobody owns: deleted.
    Link,
    /// An address or host port that nobody owns: given back.
    Lease,
    /// Firewall elements that were missing or surplus: aligned.
    Firewall,
    /// A pod whose interface was gone: joined to its network again.
    Endpoint,
    /// Something that could not be put right.
    Failed,
}

impl Recovery {
    const ALL: [Self; 7] =
        [Self::Undone, Self::Sandbox, Self::Link, Self::Lease, Self::Firewall, Self::Endpoint, Self::Failed];

    fn word(self) -> &'static str {
        match self {
            Self::Undone => "undone",
            Self::Sandbox => "sandbox",
            Self::Link => "link",
            Self::Lease => "lease",
            Self::Firewall => "firewall",
            Self::Endpoint => "endpoint",
            Self::Failed => "failed",
        }
    }
}

/// Counts them.
#[derive(Clone, Debug)]
pub struct Recoveries {
    actions: IntCounterVec,
    shims_lost: IntCounter,
}

impl Recoveries {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = IntCounterVec::new(
            Opts::new(
                "berth_recovery_actions_total",
                "Things that were not as the records say and were put right, by what they were.",
            ),
            &["action"],
        )?;
        registry.register(Box::new(counters.clone()))?;
        for action in Recovery::ALL {
            counters.with_label_values(&[action.word()]);
        }
        let shims_lost = IntCounter::new(
            "berth_cri_shims_lost_total",
            "Containers whose shim was gone and had left no exit status.",
        )?;
        registry.register(Box::new(shims_lost.clone()))?;
        Ok(Self { actions: counters, shims_lost })
    }

    /// So many were.
    pub fn count(&self, action: Recovery, many: usize) {
        self.actions.with_label_values(&[action.word()]).inc_by(u64::try_from(many).unwrap_or(u64::MAX));
    }

    /// A container's shim was gone, and nobody knows how the container ended.
    pub fn shim_lost(&self) {
        self.shims_lost.inc();
    }
}
