//! The keys of CRI-O, as crio.conf(5) has them.

use toml::{Table, Value};

use super::rule::Outcome::{Appends, Becomes, Missing, Needless, Part};
use super::rule::{Rule, auto_or_off, duration, level, message_size, rule, same, switch};

/// Where the streaming server and the metrics' listener are.
pub(super) fn addresses(table: &Table) -> Vec<(String, &'static str, String)> {
    let part = |name: &str| {
        table
            .get("crio")
            .and_then(|crio| crio.get(name))
            .and_then(Value::as_table)
            .cloned()
            .unwrap_or_default()
    };
    let text = |table: &Table, key: &str| match table.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Integer(number)) => Some(number.to_string()),
        _ => None,
    };
    let mut found = Vec::new();
    let mut join = |key: &str, ours, address: Option<String>, port: Option<String>, usual: &str| {
        if address.is_some() || port.is_some() {
            let address = address.unwrap_or_else(|| "127.0.0.1".to_owned());
            let value = super::handlers::socket(&address, port.as_deref().unwrap_or(usual));
            found.push((key.to_owned(), ours, value));
        }
    };
    let api = part("api");
    let (address, port) = (text(&api, "stream_address"), text(&api, "stream_port"));
    join("crio.api.stream_address", "streaming.address", address, port, "0");
    let metrics = part("metrics");
    if metrics.get("enable_metrics").and_then(Value::as_bool) == Some(true) {
        let (address, port) = (text(&metrics, "metrics_host"), text(&metrics, "metrics_port"));
        join("crio.metrics.metrics_port", "metrics.address", address, port.or(Some("9090".into())), "9090");
    }
    found
}

const REGISTRIES: &str = "write /etc/berth/certs.d/HOST/hosts.toml, in containerd's format";
const CONMON: &str = "Berth's own shim is beside each container";

pub(super) const RULES: &[Rule] = &[
    rule("crio.root", Needless("Berth keeps its own, `root`: set it if /var/lib has no room")),
    rule("crio.runroot", Needless("Berth keeps its own, `state`")),
    rule("crio.storage_driver", Needless("layers are overlayfs directories")),
    rule("crio.storage_option", Missing("layers are overlayfs directories")),
    rule("crio.log_dir", Needless("the kubelet says where logs go")),
    rule("crio.version_file*", Needless("what a restart finds is checked")),
    rule("crio.clean_shutdown_file", Needless("layers are synced before they count")),
    rule("crio.internal_*", Needless("what a restart finds is checked")),
    rule("crio.api.listen", Needless("Berth listens at `grpc.address`: point the kubelet there")),
    rule("crio.api.stream_address", Part("streaming.address")),
    rule("crio.api.stream_port", Part("streaming.address")),
    rule("crio.api.stream_enable_tls", Needless("the certificate's files say it")),
    rule("crio.api.stream_tls_cert", Becomes("streaming.tls_cert_file", same)),
    rule("crio.api.stream_tls_key", Becomes("streaming.tls_key_file", same)),
    rule("crio.api.stream_tls_ca", Becomes("streaming.tls_client_ca_file", same)),
    rule("crio.api.stream_idle_timeout", Becomes("streaming.idle_timeout", duration)),
    rule("crio.api.grpc_max_recv_msg_size", Becomes("grpc.max_message_size", message_size)),
    rule("crio.api.grpc_max_send_msg_size", Needless("one bound holds for both ways")),
    rule("crio.runtime.default_runtime", Becomes("default_runtime", same)),
    rule("crio.runtime.cgroup_manager", Becomes("cgroup.driver", same)),
    rule("crio.runtime.log_level", Becomes("log.level", level)),
    rule("crio.runtime.log_filter", Missing("`log.level` takes directives such as info,berth::cri=debug")),
    rule("crio.runtime.cdi_spec_dirs", Becomes("devices.cdi_spec_dirs", same)),
    rule("crio.runtime.conmon*", Needless(CONMON)),
    rule("crio.runtime.pinns_path", Needless("namespaces are pinned without a program")),
    rule("crio.runtime.drop_infra_ctr", Needless("there is no pause container")),
    rule("crio.runtime.infra_ctr_cpuset", Needless("there is no pause container")),
    rule("crio.runtime.container_exits_dir", Needless(CONMON)),
    rule("crio.runtime.container_attach_socket_dir", Needless(CONMON)),
    rule("crio.runtime.namespaces_dir", Needless("they are below `state`")),
    rule("crio.runtime.ctr_stop_timeout", Needless("the kubelet says how long")),
    rule("crio.runtime.log_to_journald", Missing("logs are files, in the CRI's format")),
    rule("crio.runtime.log_size_max", Needless("the kubelet rotates logs")),
    rule("crio.runtime.selinux", Becomes("selinux", auto_or_off)),
    rule("crio.runtime.seccomp_profile", Missing("RuntimeDefault is Berth's; pods name files by Localhost")),
    rule("crio.runtime.apparmor_profile", Needless("Berth's own is loaded and used")),
    rule("crio.runtime.default_capabilities", Missing("the set that Docker and containerd give holds")),
    rule("crio.runtime.default_sysctls", Missing("pods ask for sysctls")),
    rule("crio.runtime.default_ulimits", Missing("processes inherit the daemon's")),
    rule("crio.runtime.default_env", Missing("pods and images say it")),
    rule("crio.runtime.default_mounts_file", Missing("NRI plugins add mounts")),
    rule("crio.runtime.additional_devices", Missing("CDI names devices")),
    rule("crio.runtime.allowed_devices", Missing("CDI names devices")),
    rule("crio.runtime.hooks_dir", Missing("NRI plugins add hooks")),
    rule("crio.runtime.pids_limit", Missing("the kubelet's podPidsLimit")),
    rule("crio.runtime.enable_criu_support", Becomes("checkpoint.enable", switch)),
    rule("crio.runtime.workloads.*", Missing("there is nothing of the kind")),
    rule("crio.runtime.*", Missing("there is nothing of the kind")),
    rule("crio.image.pause_*", Needless("there is no pause image")),
    rule("crio.image.pinned_images", Appends("images.pinned")),
    rule("crio.image.pull_progress_timeout", Becomes("images.progress_timeout", duration)),
    rule("crio.image.default_transport", Needless("images come from registries")),
    rule("crio.image.global_auth_file", Missing("credentials come with the kubelet's pulls")),
    rule("crio.image.namespaced_auth_dir", Missing("credentials come with the kubelet's pulls")),
    rule("crio.image.signature_policy*", Missing("signatures are not checked yet")),
    rule("crio.image.insecure_registries", Missing(REGISTRIES)),
    rule("crio.image.registries", Missing(REGISTRIES)),
    rule("crio.image.image_volumes", Needless("they are directories of the container (mkdir)")),
    rule("crio.image.*", Missing("there is nothing of the kind")),
    rule("crio.network.network_dir", Becomes("network.cni_conf_dir", same)),
    rule("crio.network.plugin_dirs", Becomes("network.cni_bin_dirs", same)),
    rule("crio.network.plugin_dir", Appends("network.cni_bin_dirs")),
    rule("crio.network.cni_default_network", Missing("the first file by name is the pods' network")),
    rule("crio.metrics.enable_metrics", Part("metrics.address")),
    rule("crio.metrics.metrics_host", Part("metrics.address")),
    rule("crio.metrics.metrics_port", Part("metrics.address")),
    rule("crio.metrics.metrics_socket", Missing("`metrics.address` takes the path of a socket")),
    rule("crio.metrics.*", Missing("docs/metrics.md lists what is measured")),
    rule("crio.tracing.*", Missing("OTEL_EXPORTER_OTLP_ENDPOINT in the environment")),
    rule("crio.nri.enable_nri", Becomes("nri.enable", switch)),
    rule("crio.nri.nri_listen", Becomes("nri.socket_path", same)),
    rule("crio.nri.nri_plugin_dir", Becomes("nri.plugin_path", same)),
    rule("crio.nri.nri_plugin_config_dir", Becomes("nri.plugin_config_path", same)),
    rule("crio.nri.nri_plugin_registration_timeout", Becomes("nri.plugin_registration_timeout", duration)),
    rule("crio.nri.nri_plugin_request_timeout", Becomes("nri.plugin_request_timeout", duration)),
    rule("crio.nri.nri_disable_connections", Becomes("nri.disable_connections", switch)),
    rule("crio.nri.*", Missing("there is nothing of the kind")),
    rule("crio.stats.*", Needless("statistics are read when they are asked for")),
];
