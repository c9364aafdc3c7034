//! Start-up of the whole: records are held against the world, room by room, then what is left over is removed.
//!
//! Order matters: pods first, because they say which addresses and layers are in use; then networks and layers, which drop
//! what no pod needs.

use berth_cni::Controller;

use crate::error::chain;
use crate::image::Images;
use crate::pod::{self, Pods};

/// Takes up what was there when the daemon ended.
///
/// # Errors
/// When the pods' records can't be read. What goes wrong with a single thing is logged, and tried again at the next start.
pub async fn run(pods: &Pods, networks: &Controller, images: &Images) -> Result<(), pod::Error> {
    let found = pods.recover().await?;
    for error in &found.errors {
        tracing::warn!(error = chain(error), "recovery");
    }
    for id in &found.undone {
        tracing::info!(id, "removed what was left of it");
    }
    match networks.reconcile(&found.pods).await {
        Ok(report) => tracing::debug!(?report, "networks reconciled"),
        Err(error) => tracing::warn!(error = chain(&error), "reconciling networks"),
    }
    if let Err(error) = images.sweep().await {
        tracing::warn!(error = chain(&error), "sweeping layers");
    }
    tracing::info!(pods = found.pods.len(), containers = found.containers, "recovered");
    Ok(())
}
