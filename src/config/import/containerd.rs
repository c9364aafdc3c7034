//! The keys of containerd 1.6 to 2.3, as `containerd config default` prints them.

use toml::{Table, Value};

use super::rule::Outcome::{Appends, Becomes, Missing, Needless, Part};
use super::rule::{
    Rule, auto_or_off, downloads, duration, level, listed, message_size, negated, no_devices, paths, rule,
    same, switch, systemd,
};

/// The names that the CRI plugin's parts had from version to version: `cri` here.
const CRI: [&str; 4] =
    ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"];
/// The same of the NRI plugin: `nri` here.
const NRI: &str = "io.containerd.nri.v1.nri";

/// Of the CRI plugin the last names only.
pub(super) fn plain(path: &[String]) -> String {
    match path {
        [plugins, plugin, rest @ ..] if plugins == "plugins" => {
            let plugin = match plugin.as_str() {
                name if CRI.contains(&name) => "cri",
                NRI => "nri",
                other => other,
            };
            format!("{plugin}.{}", rest.join("."))
        }
        path => path.join("."),
    }
}

/// Where the streaming server listens.
pub(super) fn addresses(table: &Table) -> Vec<(String, &'static str, String)> {
    let plugins = table.get("plugins").and_then(Value::as_table);
    let of = |name: &&str| plugins.and_then(|plugins| plugins.get(*name)).and_then(Value::as_table);
    let mut found = Vec::new();
    for (name, plugin) in CRI.iter().filter_map(|name| of(name).map(|plugin| (name, plugin))) {
        let text = |key: &str| plugin.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (address, port) = (text("stream_server_address"), text("stream_server_port"));
        if address.is_some() || port.is_some() {
            let value = super::handlers::socket(address.unwrap_or("127.0.0.1"), port.unwrap_or("0"));
            found.push((format!("plugins.{name}.stream_server_address"), "streaming.address", value));
        }
    }
    found
}

const CERTS: &str = "write /etc/berth/certs.d/HOST/hosts.toml, in containerd's format";

pub(super) const RULES: &[Rule] = &[
    rule("version", Needless("the format of that file")),
    rule("imports", Needless("the files are read as well")),
    rule("root", Needless("Berth keeps its own, `root`: set it if /var/lib has no room")),
    rule("state", Needless("Berth keeps its own, `state`")),
    rule("oom_score", Needless("the systemd unit says it")),
    rule("grpc.address", Needless("Berth listens at `grpc.address`: point the kubelet there")),
    rule("grpc.gid", Becomes("grpc.gid", same)),
    rule("grpc.max_recv_message_size", Becomes("grpc.max_message_size", message_size)),
    rule("grpc.max_send_message_size", Needless("one bound holds for both ways")),
    rule("grpc.*", Missing("the socket is a unix socket of root's")),
    rule("debug.level", Becomes("log.level", level)),
    rule("debug.format", Becomes("log.format", same)),
    rule("metrics.address", Becomes("metrics.address", same)),
    rule("cgroup.path", Needless("the systemd unit says it")),
    rule("cri.stream_server_address", Part("streaming.address")),
    rule("cri.stream_server_port", Part("streaming.address")),
    rule("cri.stream_idle_timeout", Becomes("streaming.idle_timeout", duration)),
    rule("cri.enable_tls_streaming", Needless("the certificate's files say it")),
    rule("cri.x509_key_pair_streaming.tls_cert_file", Becomes("streaming.tls_cert_file", same)),
    rule("cri.x509_key_pair_streaming.tls_key_file", Becomes("streaming.tls_key_file", same)),
    rule("cri.sandbox_image", Needless("there is no pause image")),
    rule("cri.sandbox", Needless("there is no pause image")),
    rule("cri.pinned_images.sandbox", Needless("there is no pause image")),
    rule("cri.pinned_images.*", Appends("images.pinned")),
    rule(
        "cri.systemd_cgroup",
        Becomes("cgroup.driver", |value| match value.as_bool() {
            Some(true) => systemd(value),
            _ => Ok(None),
        }),
    ),
    rule("cri.max_concurrent_downloads", Becomes("images.max_parallel_downloads", downloads)),
    rule("cri.image_pull_progress_timeout", Becomes("images.progress_timeout", duration)),
    rule("cri.discard_unpacked_layers", Becomes("images.discard_unpacked_layers", switch)),
    rule("cri.containerd.discard_unpacked_layers", Becomes("images.discard_unpacked_layers", switch)),
    rule("cri.containerd.default_runtime_name", Becomes("default_runtime", same)),
    rule("cri.containerd.snapshotter", Needless("layers are overlayfs directories")),
    rule("cri.snapshotter", Needless("layers are overlayfs directories")),
    rule("cri.containerd.disable_snapshot_annotations", Needless("there are no remote snapshotters")),
    rule("cri.disable_snapshot_annotations", Needless("there are no remote snapshotters")),
    rule("cri.runtime_platforms.*", Missing("an image has one unpacked form for all handlers")),
    rule("cri.cni.bin_dir", Becomes("network.cni_bin_dirs", listed)),
    rule("cri.cni.bin_dirs", Becomes("network.cni_bin_dirs", same)),
    rule("cri.cni.conf_dir", Becomes("network.cni_conf_dir", same)),
    rule("cri.cni.max_conf_num", Needless("the first file is the pods' network, others are joined by name")),
    rule("cri.cni.setup_serially", Needless("plugins run one after the other")),
    rule("cri.cni.use_internal_loopback", Needless("loopback is Berth's own")),
    rule("cri.cni.conf_template", Missing("the pods' CIDRs become the built-in network's")),
    rule("cri.cni.ip_pref", Missing("the order of `network.bridge.subnets`, or of the plugin, holds")),
    rule("cri.registry.config_path", Becomes("images.config_path", paths)),
    rule("cri.registry.mirrors.*", Missing(CERTS)),
    rule("cri.registry.configs.*", Missing(CERTS)),
    rule("cri.registry.auths.*", Missing("credentials come with the kubelet's pulls")),
    rule("cri.registry.headers.*", Missing(CERTS)),
    rule("cri.enable_criu", Becomes("checkpoint.enable", switch)),
    rule("cri.enable_cdi", Becomes("devices.cdi_spec_dirs", no_devices)),
    rule("cri.cdi_spec_dirs", Becomes("devices.cdi_spec_dirs", same)),
    rule("cri.max_container_log_line_size", Needless("lines are cut at 16 KiB, as the kubelet expects")),
    rule("cri.stats_collect_period", Needless("statistics are read when they are asked for")),
    rule("cri.disable_tcp_service", Needless("the socket is a unix socket")),
    rule("cri.tolerate_missing_hugetlb_controller", Needless("it is tolerated")),
    rule("cri.disable_hugetlb_controller", Needless("huge pages are limited where they are asked for")),
    rule("cri.netns_mounts_under_state_dir", Needless("they are")),
    rule("cri.image_pull_with_sync_fs", Needless("layers are synced before they count")),
    rule("cri.enable_selinux", Becomes("selinux", auto_or_off)),
    rule("cri.selinux_category_range", Needless("a pod's categories are out of all 1024")),
    rule("cri.disable_apparmor", Missing("pods say Unconfined")),
    rule("cri.unset_seccomp_profile", Becomes("unset_seccomp_profile", same)),
    rule("cri.enable_unprivileged_ports", Missing("the pod's sysctl net.ipv4.ip_unprivileged_port_start")),
    rule("cri.enable_unprivileged_icmp", Missing("the pod's sysctl net.ipv4.ping_group_range")),
    rule("cri.device_ownership_from_security_context", Missing("devices keep their owners")),
    rule("cri.ignore_image_defined_volumes", Missing("volumes of images are directories of the container")),
    rule("cri.image_decryption.*", Missing("encrypted layers are not read")),
    rule("cri.*", Missing("there is nothing of the kind")),
    rule("nri.disable", Becomes("nri.enable", negated)),
    rule("nri.socket_path", Becomes("nri.socket_path", same)),
    rule("nri.plugin_path", Becomes("nri.plugin_path", same)),
    rule("nri.plugin_config_path", Becomes("nri.plugin_config_path", same)),
    rule("nri.plugin_registration_timeout", Becomes("nri.plugin_registration_timeout", duration)),
    rule("nri.plugin_request_timeout", Becomes("nri.plugin_request_timeout", duration)),
    rule("nri.disable_connections", Becomes("nri.disable_connections", switch)),
    rule(
        "io.containerd.tracing.processor.v1.otlp.*",
        Missing("OTEL_EXPORTER_OTLP_ENDPOINT in the environment"),
    ),
    rule("io.containerd.internal.v1.tracing.*", Missing("OTEL_EXPORTER_OTLP_ENDPOINT in the environment")),
    rule("timeouts.*", Needless("each step has a limit of its own")),
    rule("io.containerd.*", Needless("Berth has no plugins")),
    rule("ttrpc.*", Needless("Berth has no such socket")),
    rule("proxy_plugins.*", Missing("Berth has no plugins")),
    rule("disabled_plugins", Needless("Berth has no plugins")),
    rule("required_plugins", Needless("Berth has no plugins")),
    rule("stream_processors.*", Missing("layers are plain, gzip or zstd, not encrypted")),
];
