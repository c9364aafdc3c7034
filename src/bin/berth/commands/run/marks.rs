//! By what one knows a pod that `run` made.

use std::collections::HashMap;

/// Label on pods and containers of `run`: their name.
pub(crate) const RUN: &str = "berth.dev/run";
/// Annotation on such pods: the directory that was made for their log.
pub(crate) const LOG_DIRECTORY: &str = "berth.dev/run-log-directory";

/// Whether a thing with these labels is of `run`.
pub(crate) fn is_of_run(labels: &HashMap<String, String>) -> bool {
    labels.contains_key(RUN)
}
