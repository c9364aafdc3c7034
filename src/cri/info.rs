//! The `info` of verbose answers: JSON documents by name, as `crictl inspect` shows them.

use std::collections::HashMap;

use serde_json::Value;

use crate::container::{ContainerSnapshot, ContainerState};
use crate::pod::PodSnapshot;

/// One document under the name `info`, as containerd and CRI-O have it.
pub(crate) fn named(name: &str, document: Value) -> HashMap<String, String> {
    HashMap::from([(name.to_owned(), document.to_string())])
}

/// All that is known of a pod.
pub(crate) fn pod(pod: &PodSnapshot) -> Value {
    serde_json::json!({
        "config": compact(serde_json::to_value(&*pod.config).unwrap_or_default()),
        "runtimeHandler": pod.runtime_handler,
        "netns": pod.netns,
        "addresses": pod.addresses,
        "containers": pod.containers.iter().map(|container| &container.id).collect::<Vec<_>>(),
    })
}

/// All that is known of a container. `spec` is its OCI runtime specification.
pub(crate) fn container(container: &ContainerSnapshot, pod: &PodSnapshot, spec: Value) -> Value {
    let pid = match container.state {
        ContainerState::Running { pid, .. } => pid,
        _ => 0,
    };
    serde_json::json!({
        "sandboxID": container.pod_id,
        "pid": pid,
        "runtimeHandler": pod.runtime_handler,
        "imageID": container.image_id,
        "cgroupsPath": container.cgroups_path,
        "bundle": container.bundle,
        "snapshot": container.upper,
        "config": compact(serde_json::to_value(&*container.config).unwrap_or_default()),
        "runtimeSpec": spec,
    })
}

/// Leaves out what is not set, as protobuf's JSON form does.
fn compact(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (key, compact(value)))
            .filter(|(_, value)| is_set(value))
            .collect(),
        Value::Array(items) => items.into_iter().map(compact).collect(),
        other => other,
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(boolean) => *boolean,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        // A message that is there but empty says more than none.
        Value::Object(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::fixtures;

    #[test]
    fn documents_hold_the_configuration() {
        let document = pod(&fixtures::pod("aabb", "web"));
        assert_eq!(document["config"]["metadata"]["name"], "web");
        assert_eq!(document["config"].get("port_mappings"), None);
        assert_eq!(document["addresses"][0], "10.85.0.2");
        let running = ContainerState::Running { pid: 42, started_at: 1 };
        let snapshot = fixtures::container("cc", "aabb", running);
        let document =
            container(&snapshot, &fixtures::pod("aabb", "web"), serde_json::json!({"ociVersion": "1.2.0"}));
        assert_eq!(document["pid"], 42);
        assert_eq!(document["runtimeSpec"]["ociVersion"], "1.2.0");
        assert_eq!(document["config"]["image"]["image"], "docker.io/library/nginx:1");
    }
}
