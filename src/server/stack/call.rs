//! Which call is made, and what that means for its bounds.

/// One call of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// As operators know it in metrics and logs: `run_pod_sandbox`.
    pub(crate) name: &'static str,
    /// Which pool of the load limit it takes a place in.
    pub(crate) class: Class,
    /// Whether the server's own deadline applies.
    pub(crate) capped: bool,
}

/// Calls of a class share a bound on how many run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Changes something.
    Change,
    /// Only reads what is known: never waits for a pod, and must not wait behind those that do.
    Read,
    /// Takes as long as somebody else wants: a registry, or a program in a container. Has a pool of its own, so that stop
    /// and remove find a place when all probes hang.
    Long,
    /// Stays for as long as the client wants; takes no place.
    Subscription,
}

const fn call(name: &'static str, class: Class, capped: bool) -> Call {
    Call { name, class, capped }
}

/// Every call of the CRI, by the name the proto gives it.
const CALLS: &[(&str, Call)] = &[
    ("Version", call("version", Class::Read, true)),
    ("RunPodSandbox", call("run_pod_sandbox", Class::Change, true)),
    ("StopPodSandbox", call("stop_pod_sandbox", Class::Change, true)),
    ("RemovePodSandbox", call("remove_pod_sandbox", Class::Change, true)),
    ("PodSandboxStatus", call("pod_sandbox_status", Class::Read, true)),
    ("ListPodSandbox", call("list_pod_sandbox", Class::Read, true)),
    ("StreamPodSandboxes", call("stream_pod_sandboxes", Class::Read, false)),
    ("CreateContainer", call("create_container", Class::Change, true)),
    ("StartContainer", call("start_container", Class::Change, true)),
    // Its grace period may be longer than any cap.
    ("StopContainer", call("stop_container", Class::Change, false)),
    ("RemoveContainer", call("remove_container", Class::Change, true)),
    ("ListContainers", call("list_containers", Class::Read, true)),
    ("StreamContainers", call("stream_containers", Class::Read, false)),
    ("ContainerStatus", call("container_status", Class::Read, true)),
    ("UpdateContainerResources", call("update_container_resources", Class::Change, true)),
    ("ReopenContainerLog", call("reopen_container_log", Class::Change, true)),
    ("ExecSync", call("exec_sync", Class::Long, false)),
    ("Exec", call("exec", Class::Change, true)),
    ("Attach", call("attach", Class::Change, true)),
    ("PortForward", call("port_forward", Class::Change, true)),
    ("ContainerStats", call("container_stats", Class::Read, true)),
    ("ListContainerStats", call("list_container_stats", Class::Read, true)),
    ("StreamContainerStats", call("stream_container_stats", Class::Read, false)),
    ("PodSandboxStats", call("pod_sandbox_stats", Class::Read, true)),
    ("ListPodSandboxStats", call("list_pod_sandbox_stats", Class::Read, true)),
    ("StreamPodSandboxStats", call("stream_pod_sandbox_stats", Class::Read, false)),
    ("UpdateRuntimeConfig", call("update_runtime_config", Class::Change, true)),
    ("Status", call("status", Class::Read, true)),
    ("CheckpointContainer", call("checkpoint_container", Class::Long, false)),
    ("CheckpointPod", call("checkpoint_pod", Class::Long, false)),
    ("RestorePod", call("restore_pod", Class::Long, false)),
    ("GetContainerEvents", call("get_container_events", Class::Subscription, false)),
    ("ListMetricDescriptors", call("list_metric_descriptors", Class::Read, true)),
    ("ListPodSandboxMetrics", call("list_pod_sandbox_metrics", Class::Read, true)),
    ("StreamPodSandboxMetrics", call("stream_pod_sandbox_metrics", Class::Read, false)),
    ("RuntimeConfig", call("runtime_config", Class::Read, true)),
    ("UpdatePodSandboxResources", call("update_pod_sandbox_resources", Class::Change, true)),
    ("ListImages", call("list_images", Class::Read, true)),
    ("StreamImages", call("stream_images", Class::Read, false)),
    ("ImageStatus", call("image_status", Class::Read, true)),
    // Bounded by progress, not by time.
    ("PullImage", call("pull_image", Class::Long, false)),
    ("RemoveImage", call("remove_image", Class::Change, true)),
    ("ImageFsInfo", call("image_fs_info", Class::Read, true)),
];

/// A call of Berth's own API: transfers of images among them, so without a cap.
const OWN: Call = call("berth_api", Class::Long, false);
/// The same for networks: the kernel's work, soon done.
const NETWORKS: Call = call("berth_networks", Class::Change, true);
/// How the daemon itself is: what people ask when all places for long calls are taken by calls that hang.
const DEBUG: Call = call("berth_debug", Class::Read, true);
/// A call that no service has. One name for all: clients must not make metrics grow.
const UNKNOWN: Call = call("unknown", Class::Read, true);

impl Call {
    /// The call of a request's path: `/runtime.v1.RuntimeService/Version`.
    pub(crate) fn of(path: &str) -> Self {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        match service {
            "runtime.v1.RuntimeService" | "runtime.v1.ImageService" => {
                CALLS.iter().find(|(name, _)| *name == method).map_or(UNKNOWN, |(_, call)| *call)
            }
            "berth.v1.Networks" => NETWORKS,
            "berth.v1.Debug" => DEBUG,
            own if own.starts_with("berth.") => OWN,
            _ => UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_calls() {
        assert_eq!(Call::of("/runtime.v1.RuntimeService/ListPodSandbox").name, "list_pod_sandbox");
        assert_eq!(Call::of("/runtime.v1.ImageService/PullImage").class, Class::Long);
        assert_eq!(Call::of("/runtime.v1.RuntimeService/Nonsense"), UNKNOWN);
        assert_eq!(Call::of("/berth.v1.Images/Pull"), OWN);
        assert_eq!(Call::of("/berth.v1.Debug/Health").class, Class::Read);
        assert_eq!(Call::of(""), UNKNOWN);
    }
}
