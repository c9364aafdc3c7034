//! Annotations by which Kata, gVisor and agents on the node recognise a container (containerd's names).

use std::collections::HashMap;

use super::SpecInput;

const PREFIX: &str = "io.kubernetes.cri.";

/// The container's own annotations and ours; ours win, because others trust them.
pub(super) fn build(input: &SpecInput<'_>) -> HashMap<String, String> {
    let mut annotations = input.container.annotations.clone();
    let mut set = |name: &str, value: String| annotations.insert(format!("{PREFIX}{name}"), value);
    set("container-type", "container".to_owned());
    set("sandbox-id", input.pod_id.to_owned());
    if let Some(metadata) = &input.pod.metadata {
        set("sandbox-name", metadata.name.clone());
        set("sandbox-namespace", metadata.namespace.clone());
        set("sandbox-uid", metadata.uid.clone());
    }
    if let Some(metadata) = &input.container.metadata {
        set("container-name", metadata.name.clone());
    }
    set("image-name", input.image_name.to_owned());
    if !input.pod.log_directory.is_empty() {
        set("sandbox-log-directory", input.pod.log_directory.clone());
    }
    if let Some(resources) = input.pod.linux.as_ref().and_then(|l| l.resources.as_ref()) {
        set("sandbox-cpu-period", resources.cpu_period.to_string());
        set("sandbox-cpu-quota", resources.cpu_quota.to_string());
        set("sandbox-cpu-shares", resources.cpu_shares.to_string());
        set("sandbox-memory", resources.memory_limit_in_bytes.to_string());
    }
    annotations
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::LinuxContainerResources;

    #[test]
    fn ours_win() {
        let mut fixture = Fixture::new();
        fixture.container.annotations.insert("io.kubernetes.cri.sandbox-id".into(), "forged".into());
        fixture.container.annotations.insert("mine".into(), "kept".into());
        fixture.pod.linux.as_mut().unwrap().resources =
            Some(LinuxContainerResources { cpu_quota: 5, memory_limit_in_bytes: 6, ..Default::default() });
        let annotations = build(&fixture.input());
        for (name, want) in [
            ("mine", "kept"),
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", "pod1"),
            ("io.kubernetes.cri.sandbox-name", "web-0"),
            ("io.kubernetes.cri.sandbox-namespace", "default"),
            ("io.kubernetes.cri.sandbox-uid", "uid1"),
            ("io.kubernetes.cri.container-name", "web"),
            ("io.kubernetes.cri.image-name", "registry.test/web:1"),
            ("io.kubernetes.cri.sandbox-cpu-quota", "5"),
            ("io.kubernetes.cri.sandbox-memory", "6"),
        ] {
            assert_eq!(annotations.get(name).map(String::as_str), Some(want), "{name}");
        }
    }
}
