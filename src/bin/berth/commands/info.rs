//! `berth info`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use berth::proto::runtime::v1::{
    CgroupDriver, FilesystemUsage, ImageFsInfoRequest, ListImagesRequest, RuntimeConfigRequest,
    StatusRequest, StatusResponse, VersionRequest,
};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::client::Client;
use crate::failure::Answer;
use crate::options::listing::Format;
use crate::output::{self, human};
use crate::view::details;

/// Options of `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What `-o json` prints.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// Name and version of the daemon.
    version: String,
    /// Its socket.
    address: String,
    /// RuntimeReady, NetworkReady and others.
    conditions: Vec<Condition>,
    /// `systemd` or `cgroupfs`.
    cgroup_driver: Option<&'static str>,
    /// RuntimeClass handlers; "" is the default.
    runtime_handlers: Vec<Handler>,
    pods: usize,
    containers: usize,
    images: usize,
    /// Where images lie, and what they take.
    image_filesystems: Vec<Filesystem>,
    /// What the daemon adds; its fields may change.
    info: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    name: String,
    status: bool,
    reason: String,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Handler {
    name: String,
    recursive_read_only_mounts: bool,
    user_namespaces: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Filesystem {
    mountpoint: String,
    used_bytes: u64,
    inodes_used: u64,
}

impl Info {
    /// Asks and prints.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let view = ask(&mut client, address).await?;
        if self.output == Format::Json {
            output::print_json(&view)?;
        } else {
            output::print(&text(&view))?;
        }
        Ok(0)
    }
}

async fn ask(client: &mut Client, address: &str) -> Result<View> {
    let status = client.runtime.status(StatusRequest { verbose: true }).await.answer();
    let mut view = View::from(status.context("asking for the daemon's status")?);
    view.address = address.to_owned();
    let version = client.runtime.version(VersionRequest { version: String::new() }).await.answer()?;
    view.version = format!("{} {}", version.runtime_name, version.runtime_version);
    view.pods = client.pods().await?.len();
    view.containers = client.containers().await?.len();
    let images = client.images.list_images(ListImagesRequest { filter: None }).await.answer();
    view.images = images.context("listing images")?.images.len();
    // Calls that a runtime may lack: what they would say is left out then.
    if let Ok(config) = client.runtime.runtime_config(RuntimeConfigRequest {}).await.answer() {
        view.cgroup_driver = config.linux.map(|linux| match linux.cgroup_driver() {
            CgroupDriver::Systemd => "systemd",
            CgroupDriver::Cgroupfs => "cgroupfs",
        });
    }
    if let Ok(usage) = client.images.image_fs_info(ImageFsInfoRequest {}).await.answer() {
        view.image_filesystems = usage.image_filesystems.into_iter().map(Filesystem::from).collect();
    }
    Ok(view)
}

impl From<StatusResponse> for View {
    fn from(response: StatusResponse) -> Self {
        let conditions = response.status.unwrap_or_default().conditions.into_iter();
        let handlers = response.runtime_handlers.into_iter();
        Self {
            conditions: conditions
                .map(|condition| Condition {
                    name: condition.r#type,
                    status: condition.status,
                    reason: condition.reason,
                    message: condition.message,
                })
                .collect(),
            runtime_handlers: handlers
                .map(|handler| {
                    let features = handler.features.unwrap_or_default();
                    Handler {
                        name: handler.name,
                        recursive_read_only_mounts: features.recursive_read_only_mounts,
                        user_namespaces: features.user_namespaces,
                    }
                })
                .collect(),
            info: details::info(response.info),
            ..Self::default()
        }
    }
}

impl From<FilesystemUsage> for Filesystem {
    fn from(usage: FilesystemUsage) -> Self {
        Self {
            mountpoint: usage.fs_id.unwrap_or_default().mountpoint,
            used_bytes: usage.used_bytes.map_or(0, |used| used.value),
            inodes_used: usage.inodes_used.map_or(0, |used| used.value),
        }
    }
}

fn text(view: &View) -> String {
    let mut lines = vec![("daemon", view.version.clone()), ("socket", view.address.clone())];
    for condition in &view.conditions {
        let state = if condition.status { "yes" } else { "no" };
        let why: Vec<&str> = [condition.reason.as_str(), condition.message.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty() && !condition.status)
            .collect();
        let text = if why.is_empty() { state.to_owned() } else { format!("{state} ({})", why.join(": ")) };
        lines.push((condition.name.as_str(), text));
    }
    lines.push(("cgroup driver", view.cgroup_driver.unwrap_or("unknown").to_owned()));
    let handlers: Vec<&str> = view
        .runtime_handlers
        .iter()
        .map(|handler| if handler.name.is_empty() { "(default)" } else { &handler.name })
        .collect();
    if !handlers.is_empty() {
        lines.push(("runtimes", handlers.join(", ")));
    }
    if let Some(checkpoint) = view.info.get("checkpoint") {
        lines.push(("checkpoints", checkpoints(checkpoint)));
    }
    lines.push(("pods", view.pods.to_string()));
    lines.push(("containers", view.containers.to_string()));
    lines.push(("images", view.images.to_string()));
    for filesystem in &view.image_filesystems {
        let used = human::size(filesystem.used_bytes);
        lines.push((
            "image store",
            format!("{} ({used}, {} inodes)", filesystem.mountpoint, filesystem.inodes_used),
        ));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Whether criu works, and if not why.
fn checkpoints(state: &Value) -> String {
    let text = |name: &str| state.get(name).and_then(Value::as_str).unwrap_or_default();
    match state.get("works").and_then(Value::as_bool) {
        Some(true) => format!("yes (criu {})", text("version")),
        _ => format!("no ({})", text("problem")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_say_why_not() {
        let state = serde_json::json!({"works": true, "version": "4.1.1", "problem": ""});
        assert_eq!(checkpoints(&state), "yes (criu 4.1.1)");
        let state = serde_json::json!({"works": false, "version": "", "problem": "there is no criu"});
        assert_eq!(checkpoints(&state), "no (there is no criu)");
    }

    #[test]
    fn conditions_say_why_not() {
        let condition = |name: &str, status| Condition {
            name: name.into(),
            status,
            reason: "NoBridge".into(),
            message: "berth0 is missing".into(),
        };
        let view = View {
            conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", false)],
            ..View::default()
        };
        let text = text(&view);
        assert!(text.contains("RuntimeReady   yes\n"), "{text}");
        assert!(text.contains("NetworkReady   no (NoBridge: berth0 is missing)\n"), "{text}");
    }
}
