//! By what one knows a pod that `run` made.

use std::collections::HashMap;

/// Label on pods and containers of `run`: their name.
pub(crate) const RUN: &str = "berth.dev/run";
/// Annotation on such pods: the directory that was made for their log.
pub(crate) const LOG_DIRECTORY: &str = "berth.dev/run-log-directory";

/// Annotation on such pods: their volumes without a name of their own, parted by commas.
pub(crate) const VOLUMES: &str = "berth.dev/run-volumes";
/// Label on such volumes: the pod they were made for.
pub(crate) const ANONYMOUS: &str = "berth.dev/anonymous";

/// The volumes that were made for a pod with these annotations, and for no other.
pub(crate) fn volumes(annotations: &HashMap<String, String>) -> Vec<String> {
    let listed = annotations.get(VOLUMES).map_or("", String::as_str);
    listed.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Whether a thing with these labels is of `run`.
pub(crate) fn is_of_run(labels: &HashMap<String, String>) -> bool {
    labels.contains_key(RUN)
}
