//! The lease is kept alive beside everything else the agent does: a host that is busy for long (with a kernel that deletes hundreds of
//! interfaces, or with whom it waits for) lives, and the others must not forget its endpoints.

use std::time::{Duration, Instant};

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::task::JoinHandle;

use crate::overlay::{EtcdError, etcd::Etcd};

const KEEPING: &str = "keeping the lease";

/// Keeps a lease alive until it is dropped.
#[derive(Debug)]
pub(super) struct Heart(JoinHandle<Result<(), EtcdError>>);

impl Heart {
    pub(super) fn start(
        etcd: Etcd,
        (keeper, alive): (LeaseKeeper, LeaseKeepAliveStream),
        lease: Duration,
    ) -> Self {
        Self(tokio::spawn(beat(etcd, keeper, alive, lease)))
    }

    /// Waits for the end: the lease's, or why it can't be told.
    pub(super) async fn stopped(&mut self) -> Result<(), EtcdError> {
        match (&mut self.0).await {
            Ok(ended) => ended,
            // Nobody waits for one that was dropped.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn beat(
    etcd: Etcd,
    mut keeper: LeaseKeeper,
    mut alive: LeaseKeepAliveStream,
    lease: Duration,
) -> Result<(), EtcdError> {
    let period = lease / 3;
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let broken = |error| etcd.broken(KEEPING, error);
    loop {
        tokio::select! {
            // What was answered is heard before it is missed.
            biased;
            answer = alive.message() => {
                let answer = answer.map_err(|error| broken(Some(error)))?.ok_or_else(|| broken(None))?;
                if answer.ttl() <= 0 {
                    return Ok(());
                }
                heard = Instant::now();
            }
            _ = tick.tick() => {
                if heard.elapsed() > lease {
                    let (action, limit) = (KEEPING.to_owned(), heard.elapsed());
                    return Err(EtcdError::TimedOut { action, endpoints: etcd.endpoints().to_owned(), limit });
                }
                keeper.keep_alive().await.map_err(|error| broken(Some(error)))?;
            }
        }
    }
}
