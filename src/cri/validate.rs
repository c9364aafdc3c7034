//! Refuses malformed requests, naming the field as the proto does.

use std::time::Duration;

use tonic::Status;

use crate::proto::runtime::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, PodSandboxConfig, PodSandboxMetadata, PortMapping,
};

/// Bytes of the longest name, namespace or uid: what Kubernetes allows an object's name (a DNS subdomain, RFC 1123).
const LONGEST_NAME: usize = 253;
/// Bytes of the longest id a request may name. Ours have 64.
const LONGEST_ID: usize = 256;
/// Bytes of the longest image reference: registry, path, tag and digest of the distribution specification fit.
const LONGEST_REFERENCE: usize = 1024;
/// Bytes of the longest host name the kernel takes (`__NEW_UTS_LEN`).
const LONGEST_HOSTNAME: usize = 64;

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

/// A field that must be there.
pub(crate) fn required<T>(field: Option<T>, name: &str) -> Result<T, Status> {
    field.ok_or_else(|| invalid(format!("{name} is missing")))
}

/// The id of a pod or container.
pub(crate) fn id<'a>(id: &'a str, field: &str) -> Result<&'a str, Status> {
    bounded(id, field, LONGEST_ID)?;
    if id.is_empty() {
        return Err(invalid(format!("{field} is missing")));
    }
    if id.contains(|c: char| c == '/' || c.is_control()) {
        return Err(invalid(format!("{field} is no id: {id:?}")));
    }
    Ok(id)
}

/// The configuration of a pod.
pub(crate) fn pod_config(config: &PodSandboxConfig) -> Result<(), Status> {
    let metadata = required(config.metadata.as_ref(), "config.metadata")?;
    let PodSandboxMetadata { name, uid, namespace, attempt: _ } = metadata;
    name_of(name, "config.metadata.name")?;
    bounded(uid, "config.metadata.uid", LONGEST_NAME)?;
    bounded(namespace, "config.metadata.namespace", LONGEST_NAME)?;
    bounded(&config.hostname, "config.hostname", LONGEST_HOSTNAME)?;
    config.port_mappings.iter().enumerate().try_for_each(|(index, mapping)| port(index, mapping))
}

/// The configuration of a container.
pub(crate) fn container_config(config: &ContainerConfig) -> Result<(), Status> {
    let ContainerMetadata { name, attempt: _ } = required(config.metadata.as_ref(), "config.metadata")?;
    name_of(name, "config.metadata.name")?;
    image(config.image.as_ref(), "config.image")?;
    for (index, mount) in config.mounts.iter().enumerate() {
        if mount.container_path.is_empty() {
            return Err(invalid(format!("config.mounts[{index}].container_path is missing")));
        }
    }
    Ok(())
}

/// The image that a request names.
pub(crate) fn image<'a>(spec: Option<&'a ImageSpec>, field: &str) -> Result<&'a str, Status> {
    let reference = &required(spec, field)?.image;
    bounded(reference, &format!("{field}.image"), LONGEST_REFERENCE)?;
    if reference.is_empty() {
        return Err(invalid(format!("{field}.image is missing")));
    }
    Ok(reference)
}

/// The command of an exec.
pub(crate) fn command(command: &[String]) -> Result<(), Status> {
    match command.first() {
        Some(program) if !program.is_empty() => Ok(()),
        _ => Err(invalid("cmd is missing")),
    }
}

/// A time limit in seconds, where 0 stands for none.
pub(crate) fn limit(seconds: i64, field: &str) -> Result<Option<Duration>, Status> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(invalid(format!("{field} is negative: {seconds}"))),
    }
}

/// A grace period in seconds. Negative ones mean none, as other runtimes have it.
pub(crate) fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn name_of(name: &str, field: &str) -> Result<(), Status> {
    bounded(name, field, LONGEST_NAME)?;
    if name.is_empty() { Err(invalid(format!("{field} is missing"))) } else { Ok(()) }
}

fn bounded(text: &str, field: &str, longest: usize) -> Result<(), Status> {
    if text.len() > longest {
        return Err(invalid(format!("{field} has {} bytes, at most {longest} are allowed", text.len())));
    }
    if text.contains('\0') {
        return Err(invalid(format!("{field} holds a zero byte")));
    }
    Ok(())
}

fn port(index: usize, mapping: &PortMapping) -> Result<(), Status> {
    let field = format!("config.port_mappings[{index}]");
    let in_range = |port: i32, least: i32| (least..=65535).contains(&port);
    if !in_range(mapping.container_port, 1) {
        return Err(invalid(format!("{field}.container_port is no port: {}", mapping.container_port)));
    }
    // 0: the port is only declared, not published.
    if !in_range(mapping.host_port, 0) {
        return Err(invalid(format!("{field}.host_port is no port: {}", mapping.host_port)));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(invalid(format!("{field}.host_ip is no address: {:?}", mapping.host_ip)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cri::fixtures;
    use tonic::Code;

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, Status>, words: &str) {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(words), "{status:?}");
    }

    fn pod(change: impl FnOnce(&mut PodSandboxConfig)) -> Result<(), Status> {
        let mut config = fixtures::pod_config("web");
        change(&mut config);
        pod_config(&config)
    }

    fn container(change: impl FnOnce(&mut ContainerConfig)) -> Result<(), Status> {
        let mut config = fixtures::container_config("nginx");
        change(&mut config);
        container_config(&config)
    }

    #[test]
    fn pods_need_metadata() {
        pod(|_| ()).unwrap();
        refused(pod(|c| c.metadata = None), "config.metadata is missing");
        refused(pod(|c| c.metadata.as_mut().unwrap().name.clear()), "config.metadata.name is missing");
        refused(pod(|c| c.metadata.as_mut().unwrap().name = "a".repeat(254)), "254 bytes, at most 253");
        refused(pod(|c| c.metadata.as_mut().unwrap().uid = "a\0".into()), "config.metadata.uid holds a zero");
        refused(pod(|c| c.hostname = "a".repeat(65)), "config.hostname");
    }

    #[test]
    fn ports_are_ports() {
        let mapping = PortMapping { container_port: 80, host_port: 8080, ..Default::default() };
        let with = |mapping: PortMapping| pod(|c| c.port_mappings = vec![mapping]);
        with(mapping.clone()).unwrap();
        refused(
            with(PortMapping { container_port: 0, ..mapping.clone() }),
            "port_mappings[0].container_port",
        );
        refused(with(PortMapping { host_port: 65536, ..mapping.clone() }), "host_port is no port: 65536");
        refused(with(PortMapping { host_ip: "::g".into(), ..mapping }), "host_ip is no address");
    }

    #[test]
    fn containers_need_metadata_and_image() {
        container(|_| ()).unwrap();
        refused(container(|c| c.metadata = None), "config.metadata is missing");
        refused(container(|c| c.image = None), "config.image is missing");
        refused(container(|c| c.image.as_mut().unwrap().image.clear()), "config.image.image is missing");
        refused(container(|c| c.mounts = vec![Default::default()]), "mounts[0].container_path is missing");
    }

    #[test]
    fn ids_commands_and_limits() {
        assert_eq!(id("abc", "container_id").unwrap(), "abc");
        refused(id("", "container_id"), "container_id is missing");
        refused(id("../x", "container_id"), "is no id");
        refused(id(&"a".repeat(257), "container_id"), "at most 256");
        refused(command(&[]), "cmd is missing");
        refused(command(&[String::new()]), "cmd is missing");
        assert_eq!(limit(0, "timeout").unwrap(), None);
        assert_eq!(limit(2, "timeout").unwrap(), Some(Duration::from_secs(2)));
        refused(limit(-1, "timeout"), "timeout is negative");
        assert_eq!(grace(-5), Duration::ZERO);
    }
}
