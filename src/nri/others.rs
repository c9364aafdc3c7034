//! Containers that a plugin names: given new limits, or ended.

use std::time::Duration;

use super::{Shared, describe};
use crate::proto::nri::v1alpha1::{ContainerEviction, ContainerUpdate};

/// Carries out what a plugin wants with containers. The answer are the updates that failed and may not be ignored.
///
/// Plugins are not told of it again: it is what they wanted.
pub(super) async fn apply(
    shared: &Shared,
    plugin: &str,
    updates: Vec<ContainerUpdate>,
    evictions: Vec<ContainerEviction>,
) -> Vec<ContainerUpdate> {
    let Some(pods) = shared.pods.get() else { return updates };
    let mut failed = Vec::new();
    for update in updates {
        let wanted = update.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let (resources, lost) = describe::to_cri(wanted.unwrap_or(&Default::default()));
        if !lost.is_empty() {
            let fields = lost.join(", ");
            tracing::warn!(plugin, container = update.container_id, fields, "not changed: no way to do it");
        }
        if let Err(error) = pods.update_container_unasked(&update.container_id, resources).await {
            let error = crate::error::chain(&error);
            tracing::warn!(
                plugin,
                container = update.container_id,
                error,
                "an update of an NRI plugin failed"
            );
            if !update.ignore_failure {
                failed.push(update);
            }
        }
    }
    for eviction in evictions {
        let (container, reason) = (eviction.container_id, eviction.reason);
        tracing::info!(plugin, container, reason, "an NRI plugin ends a container");
        if let Err(error) = pods.stop_container(&container, Duration::ZERO).await {
            let error = crate::error::chain(&error);
            tracing::warn!(plugin, container, error, "an eviction of an NRI plugin failed");
        }
    }
    failed
}
