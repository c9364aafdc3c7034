//! Start-up of the whole: records are held against the world, room by room, then what is left over is removed.
//!
//! Order matters: pods first, because they say which addresses and layers are in use; then networks and layers, which drop
//! what no pod needs.

use std::time::Duration;

use berth_cni::{Controller, Report};

use crate::cni::Cni;
use crate::error::chain;
use crate::image::Images;
use crate::meter::{Recoveries, Recovery};
use crate::pod::{self, Pods};

/// Between two looks at the networks. One costs a few milliseconds, during which no pod joins.
const RECONCILE: Duration = Duration::from_secs(60);
/// From the first rule taken away to the look.
const SETTLE: Duration = Duration::from_millis(200);

/// Takes up what was there when the daemon ended.
///
/// # Errors
/// When the pods' records can't be read. What goes wrong with a single thing is logged, and tried again at the next start.
pub async fn run(
    pods: &Pods,
    networks: &Controller,
    cni: &Cni,
    images: &Images,
    recoveries: &Recoveries,
) -> Result<(), pod::Error> {
    let found = pods.recover().await?;
    for error in &found.errors {
        tracing::warn!(error = chain(error), "recovery");
    }
    for id in &found.undone {
        tracing::info!(id, "removed what was left of it");
    }
    recoveries.count(Recovery::Undone, found.undone.len());
    recoveries.count(Recovery::Failed, found.errors.len());
    tell(networks.reconcile(&found.pods).await, recoveries);
    for error in cni.reconcile(&found.pods).await {
        tracing::warn!(error = chain(&error), "reconciling CNI attachments");
    }
    if let Err(error) = images.sweep().await {
        tracing::warn!(error = chain(&error), "sweeping layers");
    }
    tracing::info!(pods = found.pods.len(), containers = found.containers, "recovered");
    Ok(())
}

/// Holds the networks' records against the kernel now and then, and as soon as somebody takes our rules away, for as long as
/// the daemon lives: rules that somebody flushed come back, a lease that nobody owns ends.
pub async fn watch(pods: Pods, networks: Controller, recoveries: Recoveries) {
    let mut rules = match networks.watch_rules() {
        Ok(rules) => Some(rules),
        Err(error) => {
            tracing::warn!(error = chain(&error), "flushed rules are noticed late");
            None
        }
    };
    loop {
        let taken = async {
            match &mut rules {
                Some(rules) => rules.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(RECONCILE) => {}
            changed = taken => match changed {
                // Whoever flushes is likely to write more at once.
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_) => {
                    rules = None;
                    continue;
                }
            },
        }
        let pods = pods.clone();
        tell(networks.reconcile_with(move || pods.ids()).await, &recoveries);
    }
}

fn tell(reconciled: berth_cni::Result<Report>, recoveries: &Recoveries) {
    match reconciled {
        Ok(report) if report.is_clean() => tracing::debug!("networks reconciled: all is as recorded"),
        Ok(report) => {
            count(&report, recoveries);
            for error in &report.errors {
                tracing::warn!(error = chain(error), "reconciling networks");
            }
            tracing::info!(?report, "networks reconciled");
        }
        Err(error) => {
            recoveries.count(Recovery::Failed, 1);
            tracing::warn!(error = chain(&error), "reconciling networks");
        }
    }
}

fn count(report: &Report, recoveries: &Recoveries) {
    for (action, many) in [
        (Recovery::Sandbox, report.removed_sandboxes.len()),
        (Recovery::Link, report.removed_links.len()),
        (Recovery::Lease, report.removed_leases + report.removed_ports),
        (Recovery::Firewall, report.removed_elements + report.restored_elements),
        (Recovery::Endpoint, report.restored_endpoints.len()),
        (Recovery::Failed, report.errors.len()),
    ] {
        recoveries.count(action, many);
    }
}
