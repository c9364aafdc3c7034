//! The container that stands for a pod's sandbox.
//!
//! Berth's pods need none. A shim that boots a virtual machine, or a kernel of its own, for each pod does so when the first
//! container of the pod is created, which it tells by the annotation `io.kubernetes.cri.container-type`; containerd gives it a
//! pause container. So do we, without an image: its root holds one program of our own making (`pause`) that sleeps.
//!
//! The container is known by the pod's id, has its bundle among those of containers, and no record: the pod's speaks for it.

mod pause;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::error::Error;
use super::tools::{Surroundings, Tools};
use super::{end_without_shim, remove, spec};
use crate::proto::berth::v1::ContainerRecord;
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::shim::{Shim, TaskState};

/// Creates and starts it. When that fails, nothing is left.
///
/// # Errors
/// [`Error::CannotRun`] with the shim's reason, [`Error::Path`] when its bundle can't be made.
pub(crate) async fn start(tools: &Tools, pod: &Surroundings) -> Result<(), Error> {
    let id = &pod.pod_id;
    let record = record(tools, &pod.config, id);
    let started = run(tools, pod, &record).await;
    if started.is_err() {
        for left in end(tools, &record).await {
            tracing::warn!(pod = id, error = crate::error::chain(&left), "undoing a sandbox container");
        }
    }
    started
}

/// What stands for its record.
pub(crate) fn record(tools: &Tools, config: &PodSandboxConfig, pod_id: &str) -> ContainerRecord {
    let parent = config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let path = tools
        .naming
        .pod(parent, pod_id)
        .and_then(|(parent, _)| tools.naming.container_path(&parent, pod_id))
        .map(|path| format!("/{}", path.display()));
    ContainerRecord { id: pod_id.to_owned(), cgroups_path: path.unwrap_or_default(), ..Default::default() }
}

async fn run(tools: &Tools, pod: &Surroundings, record: &ContainerRecord) -> Result<(), Error> {
    let bundle = tools.layout(&record.id).bundle;
    bundle_at(&bundle, &spec(pod, &record.cgroups_path))?;
    let shim = tools.launcher.spawn(&record.id, &bundle, &pod.handler.backend)?;
    let cannot = |source| Error::CannotRun { id: record.id.clone(), source: std::sync::Arc::new(source) };
    shim.create(Vec::new(), String::new(), String::new(), String::new(), false, None)
        .await
        .map_err(cannot)?;
    shim.start("").await.map_err(cannot)?;
    Ok(())
}

/// Ends and removes it. Does all it can; returns what it could not.
pub(crate) async fn end(tools: &Tools, record: &ContainerRecord) -> Vec<Error> {
    if !tools.layout(&record.id).bundle.exists() {
        return Vec::new();
    }
    end_without_shim(tools, record).await;
    remove(tools, record).await
}

/// Whether it runs. One whose shim does not answer within `limit` is taken to: nothing says that it ended.
pub(crate) async fn runs(tools: &Tools, id: &str, limit: Duration) -> bool {
    let Ok(shim) = Shim::connect(id, &tools.layout(id).bundle) else { return false };
    let answer = tokio::time::timeout(limit, shim.state()).await;
    answer.map_or(true, |state| matches!(state, Ok(TaskState::Running { .. })))
}

/// Returns when it has ended, or its shim.
pub(crate) async fn ended(tools: &Tools, id: &str) {
    if let Ok(shim) = Shim::connect(id, &tools.layout(id).bundle) {
        let _ = shim.wait("").await;
    }
}

fn bundle_at(bundle: &Path, spec: &Value) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let rootfs = bundle.join("rootfs");
    let make = || -> io::Result<()> {
        for directory in ["proc", "sys", "dev"] {
            fs::create_dir_all(rootfs.join(directory))?;
        }
        let program = rootfs.join("pause");
        fs::write(&program, pause::program()?)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(bundle.join("config.json"), spec.to_string())
    };
    make().map_err(|source| Error::Path {
        action: "making the sandbox container in",
        path: bundle.to_owned(),
        source,
    })
}

/// The specification, with what shims look for in it (containerd, `pkg/cri/annotations`).
fn spec(pod: &Surroundings, cgroups_path: &str) -> Value {
    let config = &pod.config;
    let mut namespaces = vec![json!({"type": "mount"})];
    let mut join = |kind: &str, path: Option<&Path>| {
        if let Some(path) = path {
            namespaces.push(json!({"type": kind, "path": path}));
        }
    };
    join("network", pod.network.as_deref());
    join("ipc", pod.ipc.as_deref());
    join("uts", pod.uts.as_deref());
    join("pid", pod.pid.as_deref());
    if pod.pid.is_none() && !spec::host_pid(config) {
        namespaces.push(json!({"type": "pid"}));
    }
    let metadata = config.metadata.clone().unwrap_or_default();
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let mut annotations = serde_json::Map::new();
    for (name, value) in [
        ("container-type", "sandbox".to_owned()),
        ("sandbox-id", pod.pod_id.clone()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
        ("sandbox-log-directory", config.log_directory.clone()),
        ("sandbox-cpu-period", resources.cpu_period.to_string()),
        ("sandbox-cpu-quota", resources.cpu_quota.to_string()),
        ("sandbox-cpu-shares", resources.cpu_shares.to_string()),
        ("sandbox-memory", resources.memory_limit_in_bytes.to_string()),
    ] {
        annotations.insert(format!("io.kubernetes.cri.{name}"), value.into());
    }
    json!({
        "ociVersion": spec::OCI_VERSION,
        "process": {
            "args": ["/pause"],
            "cwd": "/",
            "env": ["PATH=/"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "capabilities": {},
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "annotations": annotations,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroups_path,
            // As containerd gives its own: next to nothing.
            "resources": {"cpu": {"shares": 2}},
            "maskedPaths": spec::default_masked_paths(),
            "readonlyPaths": spec::default_readonly_paths(),
        },
    })
}
