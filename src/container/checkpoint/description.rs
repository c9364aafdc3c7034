//! What an archive says of the container: the small JSON files beside its memory.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::archive::private;
use super::{Error, Subject};
use crate::container::snapshot::ContainerState;

/// A time of Go's that stands for none.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// `CONTAINER_RUNNING` of the CRI.
const RUNNING: i32 = 1;

/// Writes them into `directory`.
pub(super) fn write(subject: &Subject, directory: &Path) -> Result<(), Error> {
    let container = &subject.container;
    let spec = container.bundle.join("config.json");
    let bytes = fs::read(&spec).map_err(Error::at("reading", &spec))?;
    put(directory, "spec.dump", &bytes)?;
    for (name, value) in
        [("config.dump", config(subject)), ("status.dump", status(subject)), ("status", state(subject))]
    {
        put(directory, name, value.to_string().as_bytes())?;
    }
    let mounts = bind_mounts(&serde_json::from_slice(&bytes).unwrap_or_default());
    if !mounts.is_empty() {
        put(directory, "bind.mounts", Value::from(mounts).to_string().as_bytes())?;
    }
    if let Some(log) = &container.log_path {
        let target = directory.join("container.log");
        let copied = fs::File::open(log).and_then(|mut log| io::copy(&mut log, &mut private(&target)?));
        match copied {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::at("copying", log)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn put(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = directory.join(name);
    private(&path).and_then(|mut file| file.write_all(bytes)).map_err(Error::at("writing", &path))
}

fn time(nanoseconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.into())
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| NEVER.to_owned())
}

/// checkpointctl's `ContainerConfig`.
fn config(subject: &Subject) -> Value {
    let container = &subject.container;
    let metadata = container.config.metadata.clone().unwrap_or_default();
    let image = container.config.image.clone().unwrap_or_default();
    let asked = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    json!({
        "id": container.id,
        "name": metadata.name,
        "rootfsImage": asked,
        "rootfsImageRef": container.image_id,
        "rootfsImageName": container.image_ref,
        "runtime": subject.handler.name,
        "createdTime": time(container.created_at),
        "checkpointedTime": time(crate::container::now()),
        "restoredTime": NEVER,
        "restored": false,
    })
}

fn times(subject: &Subject) -> (u32, i64) {
    match subject.container.state {
        ContainerState::Running { pid, started_at } => (pid, started_at),
        _ => (0, 0),
    }
}

/// The CRI's ContainerStatus, in the names of its fields.
fn status(subject: &Subject) -> Value {
    let container = &subject.container;
    let config = &container.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    let pod = subject.pod.metadata.clone().unwrap_or_default();
    json!({
        "id": container.id,
        "metadata": {"name": metadata.name, "attempt": metadata.attempt},
        "state": RUNNING,
        "created_at": container.created_at,
        "started_at": times(subject).1,
        "image": {"image": config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default()},
        "image_ref": container.image_ref,
        "labels": config.labels,
        "annotations": config.annotations,
        "mounts": config.mounts.iter().map(|mount| json!({
            "container_path": mount.container_path,
            "host_path": mount.host_path,
            "readonly": mount.readonly,
        })).collect::<Vec<_>>(),
        "log_path": container.log_path,
        "pod": {"id": container.pod_id, "name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
    })
}

/// containerd's own record, which checkpointctl reads.
fn state(subject: &Subject) -> Value {
    let (pid, started_at) = times(subject);
    json!({
        "CreatedAt": subject.container.created_at, "StartedAt": started_at, "FinishedAt": 0, "ExitCode": 0,
        "Pid": pid, "Reason": "", "Message": "",
    })
}

/// CRI-O's list of what was mounted from the host: at a restore it must be there, and of the same kind.
fn bind_mounts(spec: &Value) -> Vec<Value> {
    let mounts = spec.get("mounts").and_then(Value::as_array).into_iter().flatten();
    mounts
        .filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind"))
        .filter_map(|mount| {
            let source = mount.get("source")?.as_str()?;
            let found = fs::metadata(source).ok()?;
            Some(json!({
                "source": source,
                "destination": mount.get("destination")?,
                "file_type": if found.is_dir() { "directory" } else { "file" },
                "permissions": std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o7777,
            }))
        })
        .collect()
}
