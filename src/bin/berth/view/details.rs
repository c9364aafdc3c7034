//! What `inspect` prints: everything in a verbose status.

use std::collections::{BTreeMap, HashMap};

use berth::proto::runtime::v1::{
    Container, ContainerStatusResponse, ImageStatusResponse, LinuxContainerResources, Mount,
    MountPropagation, NamespaceMode, NamespaceOption, PodSandbox, PodSandboxStatusResponse, Signal,
};
use serde::Serialize;
use serde_json::Value;

use super::{ContainerView, ImageView, PodView};

/// A thing with its kind: what `inspect` prints a list of.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum Details {
    /// A container.
    Container(Box<ContainerDetails>),
    /// A pod.
    Pod(Box<PodDetails>),
    /// An image.
    Image(Box<ImageDetails>),
}

/// A container in full: what `ps -o json` prints, and more.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerDetails {
    #[serde(flatten)]
    container: ContainerView,
    /// The image's name with its digest.
    image_ref: String,
    /// What the runtime said about its end.
    message: String,
    /// Its log file; empty when it has none.
    log_path: String,
    /// Who its first process runs as.
    user: Option<UserDetails>,
    /// The signal that stops it, as in `SIGTERM`.
    stop_signal: Option<String>,
    /// Host paths and images mounted into it.
    mounts: Vec<MountDetails>,
    /// Its limits; 0: none.
    resources: Option<ResourceDetails>,
    /// What the daemon adds (process id, OCI spec); its fields may change.
    info: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UserDetails {
    uid: i64,
    gid: i64,
    supplemental_groups: Vec<i64>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MountDetails {
    container_path: String,
    host_path: String,
    image: String,
    read_only: bool,
    recursive_read_only: bool,
    /// `private`, `hostToContainer` or `bidirectional`.
    propagation: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceDetails {
    cpu_period_micros: i64,
    cpu_quota_micros: i64,
    cpu_shares: i64,
    cpuset_cpus: String,
    cpuset_mems: String,
    memory_limit_bytes: i64,
    memory_swap_limit_bytes: i64,
    oom_score_adj: i64,
    hugepage_limits: BTreeMap<String, u64>,
    unified: BTreeMap<String, String>,
}

impl ContainerDetails {
    /// From a verbose status.
    pub(crate) fn new(
        listed: &Container,
        response: ContainerStatusResponse,
        pod: Option<&PodSandbox>,
    ) -> Self {
        let container = ContainerView::new(listed, response.status.as_ref(), pod);
        let status = response.status.unwrap_or_default();
        let stop_signal = status.stop_signal();
        Self {
            container,
            user: status.user.and_then(|user| user.linux).map(|user| UserDetails {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: user.supplemental_groups,
            }),
            stop_signal: (stop_signal != Signal::RuntimeDefault)
                .then(|| stop_signal.as_str_name().trim_start_matches("SIGNAL_").to_owned()),
            mounts: status.mounts.into_iter().map(MountDetails::from).collect(),
            resources: status.resources.and_then(|resources| resources.linux).map(ResourceDetails::from),
            image_ref: status.image_ref,
            message: status.message,
            log_path: status.log_path,
            info: info(response.info),
        }
    }
}

impl From<Mount> for MountDetails {
    fn from(mount: Mount) -> Self {
        Self {
            propagation: match mount.propagation() {
                MountPropagation::PropagationPrivate => "private",
                MountPropagation::PropagationHostToContainer => "hostToContainer",
                MountPropagation::PropagationBidirectional => "bidirectional",
            },
            container_path: mount.container_path,
            host_path: mount.host_path,
            image: mount.image.map(|image| image.image).unwrap_or_default(),
            read_only: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
        }
    }
}

impl From<LinuxContainerResources> for ResourceDetails {
    fn from(resources: LinuxContainerResources) -> Self {
        let hugepages = resources.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit));
        Self {
            cpu_period_micros: resources.cpu_period,
            cpu_quota_micros: resources.cpu_quota,
            cpu_shares: resources.cpu_shares,
            cpuset_cpus: resources.cpuset_cpus,
            cpuset_mems: resources.cpuset_mems,
            memory_limit_bytes: resources.memory_limit_in_bytes,
            memory_swap_limit_bytes: resources.memory_swap_limit_in_bytes,
            oom_score_adj: resources.oom_score_adj,
            hugepage_limits: hugepages.collect(),
            unified: resources.unified.into_iter().collect(),
        }
    }
}

/// A pod in full: what `pods -o json` prints, and more.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodDetails {
    #[serde(flatten)]
    pod: PodView,
    /// Which namespaces it has: `pod`, `container`, `node` or `target`.
    namespaces: Option<NamespaceDetails>,
    /// Its containers.
    containers: Vec<ContainerView>,
    /// What the daemon adds; its fields may change.
    info: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceDetails {
    network: &'static str,
    pid: &'static str,
    ipc: &'static str,
}

impl PodDetails {
    /// From a verbose status and views of its containers.
    pub(crate) fn new(
        listed: &PodSandbox,
        response: PodSandboxStatusResponse,
        containers: Vec<ContainerView>,
    ) -> Self {
        let options = response
            .status
            .as_ref()
            .and_then(|status| status.linux.as_ref()?.namespaces.as_ref()?.options.as_ref());
        Self {
            pod: PodView::new(listed, response.status.as_ref()),
            namespaces: options.map(NamespaceDetails::from),
            containers,
            info: info(response.info),
        }
    }
}

impl From<&NamespaceOption> for NamespaceDetails {
    fn from(options: &NamespaceOption) -> Self {
        let word = |mode| match mode {
            NamespaceMode::Pod => "pod",
            NamespaceMode::Container => "container",
            NamespaceMode::Node => "node",
            NamespaceMode::Target => "target",
        };
        Self { network: word(options.network()), pid: word(options.pid()), ipc: word(options.ipc()) }
    }
}

/// An image in full: what `images -o json` prints, and more.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageDetails {
    #[serde(flatten)]
    image: ImageView,
    /// The user its containers run as, where it is given by number.
    uid: Option<i64>,
    /// The same by name.
    username: String,
    /// What the daemon adds (the image's configuration); its fields may change.
    info: BTreeMap<String, Value>,
}

impl ImageDetails {
    /// From a verbose status. `None`: there is no such image.
    pub(crate) fn new(response: ImageStatusResponse) -> Option<Self> {
        let image = response.image?;
        Some(Self {
            uid: image.uid.map(|uid| uid.value),
            username: image.username.clone(),
            info: info(response.info),
            image: ImageView::from(&image),
        })
    }
}

/// The daemon's additions: texts that are JSON are shown as such.
pub(crate) fn info(info: HashMap<String, String>) -> BTreeMap<String, Value> {
    let read = |text: String| match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() || value.is_array() => value,
        _ => Value::String(text),
    };
    info.into_iter().map(|(key, text)| (key, read(text))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth::proto::runtime::v1::{ContainerStatus, Image};

    use super::*;

    #[test]
    fn additions_that_are_json_are_shown_as_such() {
        let given = [("spec", "{\"a\":1}"), ("pid", "42"), ("text", "hello")];
        let shown = info(given.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert_eq!(shown["spec"]["a"], 1);
        assert_eq!(shown["pid"], "42");
        assert_eq!(shown["text"], "hello");
    }

    #[test]
    fn a_container_has_the_fields_of_the_list_and_more() {
        let mut status = ContainerStatus { log_path: "/l/0.log".into(), ..Default::default() };
        status.set_stop_signal(Signal::Sigquit);
        let mount = Mount { container_path: "/data".into(), readonly: true, ..Default::default() };
        status.mounts = vec![mount];
        let response = ContainerStatusResponse { status: Some(status), info: HashMap::new() };
        let listed = Container { id: "c1".into(), ..Default::default() };
        let details = Details::Container(Box::new(ContainerDetails::new(&listed, response, None)));
        let json = serde_json::to_value(details).unwrap();
        assert_eq!(json["kind"], "container");
        assert_eq!(json["id"], "c1");
        assert_eq!(json["logPath"], "/l/0.log");
        assert_eq!(json["stopSignal"], "SIGQUIT");
        assert_eq!(json["mounts"][0]["readOnly"], true);
        assert_eq!(json["mounts"][0]["propagation"], "private");
    }

    #[test]
    fn an_image_that_is_not_there_has_no_details() {
        assert!(ImageDetails::new(ImageStatusResponse::default()).is_none());
        let image = Image { id: "sha256:1".into(), ..Default::default() };
        let response = ImageStatusResponse { image: Some(image), info: HashMap::new() };
        assert!(ImageDetails::new(response).is_some());
    }
}
