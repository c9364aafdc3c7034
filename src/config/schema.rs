//! Every key of the configuration, in one table: its name, type, default and meaning.
//!
//! All else is derived from it: which keys a file may hold and of which type, the defaults, the commented default file,
//! and the reference in `docs/configuration.md`.

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Dotted path; `*` stands for any name.
    pub(crate) path: &'static str,
    /// What its value may be.
    pub(crate) kind: Type,
    /// The default as it would be written in TOML.
    pub(crate) default: &'static str,
    /// What it does, with its units and limits.
    pub(crate) doc: &'static str,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Any string.
    Text,
    /// An absolute path, or an empty string where the key allows that.
    Path,
    /// A list of strings.
    TextList,
    /// A list of absolute paths.
    PathList,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// Bytes: a whole number, or a string with the unit KiB, MiB, GiB or TiB.
    Size,
    /// A string of numbers with units: `500ms`, `90s`, `1h30m`.
    Duration,
    /// One of some words.
    Choice(&'static [&'static str]),
}

impl Type {
    /// How messages and the reference name it.
    pub(crate) fn describe(self) -> String {
        match self {
            Type::Text => "a string".into(),
            Type::Path => "an absolute path".into(),
            Type::TextList => "a list of strings".into(),
            Type::PathList => "a list of absolute paths".into(),
            Type::Integer => "a whole number".into(),
            Type::Boolean => "true or false".into(),
            Type::Size => "a size (bytes, or a string such as \"16MiB\")".into(),
            Type::Duration => "a duration (a string such as \"90s\" or \"1h30m\")".into(),
            Type::Choice(words) => {
                format!("one of {}", words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// What a section is for, in the order of the default file.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("", "Where things live, which runtime is the default, seccomp, SELinux."),
    ("grpc", "The socket that the kubelet, crictl and berth talk to."),
    ("log", "The daemon's own log, on standard error. On SIGHUP the level is read again."),
    (
        "streaming",
        "The server for exec, attach and port-forward sessions, over SPDY/3.1 and WebSocket. Without TLS keep it on loopback. The keys for TLS are `x509_key_pair_streaming` in containerd, `stream_tls_cert`, `stream_tls_key` and `stream_tls_ca` in CRI-O.",
    ),
    (
        "metrics",
        "The listener for Prometheus (`/metrics`) and probes (`/healthz`, `/readyz`). Without authentication: keep it on \
     loopback or a unix socket.",
    ),
    ("cgroup", "Control groups."),
    ("images", "Pulling and keeping images."),
    ("network", "The networks pods join."),
    ("network.bridge", "The built-in bridge network."),
    (
        "network.etcd",
        "The store of overlay networks, which span nodes (network.store = \"etcd\"). Without it the daemon runs, and so do its other \
     networks.",
    ),
    ("network.overlay", "How this node takes part in overlay networks (network.store = \"etcd\")."),
    ("devices", "Devices by name (CDI)."),
    (
        "checkpoint",
        "Checkpoints of running containers, and containers made from them. criu does it; nothing else needs it.",
    ),
    (
        "nri",
        "Plugins that are told of each step of pods and containers, and may change containers as they are made (NRI).",
    ),
    (
        "runtimes.*",
        "A runtime handler: what a RuntimeClass of that name runs containers with. The handler \"berth\" is always there.",
    ),
];

macro_rules! key {
    ($path:literal, $kind:expr, $default:literal, $doc:literal) => {
        Key { path: $path, kind: $kind, default: $default, doc: $doc }
    };
}

/// All keys, in the order of the default file.
pub(crate) const KEYS: &[Key] = &[
    key!("version", Type::Integer, "1", "Version of this file's format. 1 is the only one."),
    key!("root", Type::Path, "\"/var/lib/berth\"", "Images, layers, records: kept over a reboot."),
    key!("state", Type::Path, "\"/run/berth\"", "Namespaces, shims, sockets: gone at a reboot."),
    key!(
        "shim",
        Type::Path,
        "\"\"",
        "The berth-shim program. Empty: looked for beside berthd, then in PATH."
    ),
    key!(
        "default_runtime",
        Type::Text,
        "\"berth\"",
        "The runtime handler of pods that name none; one of [runtimes]."
    ),
    key!(
        "unset_seccomp_profile",
        Type::Text,
        "\"unconfined\"",
        "The seccomp profile of containers that name none: \"unconfined\", \"runtime/default\" (Berth's own), or \"localhost/\" and the \
     absolute path of a profile. The kubelet names one for every container when its seccompDefault is on."
    ),
    key!(
        "selinux",
        Type::Choice(&["auto", "off"]),
        "\"auto\"",
        "auto: where SELinux is on, containers get the labels that pods ask for, else the policy's own for containers with categories \
     of their pod's own. off: labels are ignored, containers run under the daemon's."
    ),
    key!(
        "grpc.address",
        Type::Path,
        "\"\"",
        "Path of the unix socket, at most 107 bytes. Empty: berth.sock in the state directory."
    ),
    key!("grpc.gid", Type::Integer, "0", "Group that owns the socket. Its mode is 0660, its owner root."),
    key!(
        "grpc.max_message_size",
        Type::Size,
        "\"16MiB\"",
        "Largest request and answer; 1MiB to 1GiB. The kubelet itself takes at most 16MiB."
    ),
    key!(
        "grpc.deadline",
        Type::Duration,
        "\"5m\"",
        "Longest time a call may take, whatever its caller allows; 1s to 24h. Streams, PullImage, StopContainer, \
         ExecSync, checkpoint and restore have no cap: progress, grace period or their own time limit bounds them."
    ),
    key!(
        "grpc.max_concurrent_calls",
        Type::Integer,
        "512",
        "Calls that change something and run at once; 1 to 65536. One more is answered RESOURCE_EXHAUSTED."
    ),
    key!(
        "grpc.max_concurrent_reads",
        Type::Integer,
        "512",
        "The same for calls that only read (List, Status, Stats, Version), which so never wait behind the others."
    ),
    key!("log.format", Type::Choice(&["text", "json"]), "\"text\"", "How a line looks."),
    key!(
        "log.level",
        Type::Text,
        "\"info\"",
        "error, warn, info, debug or trace; or directives such as \"info,berth::cri=debug\"."
    ),
    key!(
        "streaming.address",
        Type::Text,
        "\"127.0.0.1:0\"",
        "IP address and port the server listens on; port 0 takes a free one."
    ),
    key!(
        "streaming.idle_timeout",
        Type::Duration,
        "\"4h\"",
        "A session without traffic ends after this time; 1s to 168h."
    ),
    key!(
        "streaming.tls_cert_file",
        Type::Path,
        "\"\"",
        "Certificate chain (PEM) to serve TLS with; URLs are then https. A file that changes is read again. Empty: no TLS."
    ),
    key!("streaming.tls_key_file", Type::Path, "\"\"", "The certificate's key (PEM)."),
    key!(
        "streaming.tls_client_ca_file",
        Type::Path,
        "\"\"",
        "Authorities (PEM) that clients' certificates must come from. Empty: clients need none."
    ),
    key!(
        "metrics.address",
        Type::Text,
        "\"127.0.0.1:9477\"",
        "IP address and port, or the path of a unix socket. Empty: off."
    ),
    key!(
        "cgroup.driver",
        Type::Choice(&["auto", "systemd", "cgroupfs"]),
        "\"auto\"",
        "Who makes the control groups. auto: systemd where systemd runs the machine, cgroupfs elsewhere. The kubelet \
         asks for it and follows."
    ),
    key!(
        "cgroup.root",
        Type::Text,
        "\"/berth\"",
        "Control group for what is not under a pod's own parent: an absolute path within the hierarchy, or a slice \
         with the systemd driver."
    ),
    key!(
        "images.config_path",
        Type::PathList,
        "[\"/etc/berth/certs.d\", \"/etc/containerd/certs.d\"]",
        "Directories of HOST/hosts.toml with mirrors and certificates; the first that knows the host wins. Read at \
         each pull."
    ),
    key!(
        "images.max_parallel_downloads",
        Type::Integer,
        "3",
        "Layers of one image that download at once; 1 to 64."
    ),
    key!(
        "images.progress_timeout",
        Type::Duration,
        "\"1m\"",
        "A transfer that brings nothing for this time is given up; 1s to 24h."
    ),
    key!(
        "images.pinned",
        Type::TextList,
        "[]",
        "References of images that are never collected, such as \"registry.k8s.io/pause:3.10\"; `*` stands for any text."
    ),
    key!(
        "images.max_layer_size",
        Type::Size,
        "\"64GiB\"",
        "Largest layer, unpacked; at least 1MiB. A layer beyond it fails the pull."
    ),
    key!("images.max_layer_entries", Type::Integer, "5000000", "Most entries of one layer; at least 1."),
    key!(
        "images.max_decompression_ratio",
        Type::Integer,
        "200",
        "Most bytes out for a byte in, once a layer has unpacked 256MiB; at least 2."
    ),
    key!(
        "images.discard_unpacked_layers",
        Type::Boolean,
        "false",
        "Drop a layer's compressed blob once it is unpacked. Saves disk; such an image can't be exported."
    ),
    key!(
        "network.mode",
        Type::Choice(&["auto", "builtin", "cni"]),
        "\"auto\"",
        "Who attaches pods that name no network. auto: CNI plugins when cni_conf_dir holds a configuration, else the \
         built-in networks. builtin, cni: always these."
    ),
    key!("network.default", Type::Text, "\"bridge\"", "The network a pod joins when it names none."),
    key!(
        "network.store",
        Type::Choice(&["embedded", "etcd"]),
        "\"embedded\"",
        "Where overlay networks are recorded: etcd, or embedded for none of them. All else is always recorded on the node."
    ),
    key!(
        "network.table",
        Type::Text,
        "\"berth\"",
        "Name of our nftables table: letters, digits, `_` and `-`, at most 64. Daemons side by side need one each."
    ),
    key!(
        "network.cni_conf_dir",
        Type::Path,
        "\"/etc/cni/net.d\"",
        "CNI configurations: *.conflist, *.conf and *.json, of which the first by name is the pods' network and others are \
         joined by name. Read anew when they change."
    ),
    key!(
        "network.cni_bin_dirs",
        Type::PathList,
        "[\"/opt/cni/bin\"]",
        "Where CNI plugins are looked for, in order."
    ),
    key!(
        "network.cni_timeout",
        Type::Duration,
        "\"1m\"",
        "Longest time of one CNI plugin's run, after which it is killed; 1s to 10m."
    ),
    key!("network.bridge.name", Type::Text, "\"berth0\"", "Name of the bridge interface, at most 15 bytes."),
    key!(
        "network.bridge.subnets",
        Type::TextList,
        "[\"10.85.0.0/16\", \"fd85:be:27::/64\"]",
        "Address pools, the pod's first family first. They must not overlap. The node's pod CIDRs take their place when \
         the kubelet tells them."
    ),
    key!(
        "network.bridge.mtu",
        Type::Integer,
        "0",
        "MTU of the bridge and of its pods, in bytes: 68 to 65535, with IPv6 at least 1280. 0: from the route out."
    ),
    key!("network.etcd.endpoints", Type::TextList, "[]", "URLs of the etcd servers."),
    key!("network.etcd.prefix", Type::Text, "\"/berth\"", "Prefix of all our keys in etcd."),
    key!(
        "network.etcd.ca_file",
        Type::Path,
        "\"\"",
        "Authorities (PEM) that the servers' certificates come from. https endpoints need it."
    ),
    key!(
        "network.etcd.cert_file",
        Type::Path,
        "\"\"",
        "This node's certificate (PEM), when etcd asks for one."
    ),
    key!("network.etcd.key_file", Type::Path, "\"\"", "The certificate's key (PEM)."),
    key!("network.etcd.timeout", Type::Duration, "\"3s\"", "Longest time of one call to etcd; 100ms to 1m."),
    key!(
        "network.etcd.lease",
        Type::Duration,
        "\"30s\"",
        "A node that is not heard of for this time is forgotten by the others, with its pods; 2s to 1h, whole seconds."
    ),
    key!(
        "network.overlay.address",
        Type::Text,
        "\"\"",
        "This node's address for VXLAN packets from other nodes. Empty: the first one of the default route's interface."
    ),
    key!(
        "network.overlay.port",
        Type::Integer,
        "4789",
        "UDP port of VXLAN, the same on all nodes; 1 to 65535. 4789 is IANA's and Docker's, 8472 flannel's."
    ),
    key!(
        "network.overlay.wireguard_port",
        Type::Integer,
        "51820",
        "UDP port of WireGuard, which encrypted overlay networks go through; 1 to 65535. Other nodes may have another."
    ),
    key!(
        "devices.cdi_spec_dirs",
        Type::PathList,
        "[\"/etc/cdi\", \"/var/run/cdi\"]",
        "Directories of CDI files; a later one overrides the earlier. Read when a container asks for a device. Empty: off."
    ),
    key!(
        "checkpoint.enable",
        Type::Boolean,
        "true",
        "Answer CheckpointContainer, and restore containers whose image is a checkpoint. Without criu both say what is missing."
    ),
    key!(
        "checkpoint.criu",
        Type::Path,
        "\"\"",
        "The criu program. Empty: looked for in PATH and the system's directories whenever it is needed."
    ),
    key!(
        "nri.enable",
        Type::Boolean,
        "true",
        "Launch the plugins of plugin_path and let others connect. Without plugins it costs nothing."
    ),
    key!(
        "nri.socket_path",
        Type::Path,
        "\"/var/run/nri/nri.sock\"",
        "Path of the unix socket that plugins connect to, at most 107 bytes. Only root may. When another runtime listens \
         there, plugins can't connect to Berth, and its log says so."
    ),
    key!(
        "nri.plugin_path",
        Type::Path,
        "\"/opt/nri/plugins\"",
        "Directory of plugins to launch at the start: executables NN-name, where NN is the order."
    ),
    key!(
        "nri.plugin_config_path",
        Type::Path,
        "\"/etc/nri/conf.d\"",
        "Directory of their configurations: NN-name.conf, else name.conf."
    ),
    key!(
        "nri.plugin_registration_timeout",
        Type::Duration,
        "\"5s\"",
        "Time a plugin has to register, and then again to be told of all there is; 100ms to 5m."
    ),
    key!(
        "nri.plugin_request_timeout",
        Type::Duration,
        "\"2s\"",
        "Time a plugin has to answer one request; 10ms to 1m. One that does not is cut off, and what waited goes on."
    ),
    key!(
        "nri.disable_connections",
        Type::Boolean,
        "false",
        "Let no plugins connect: only those of plugin_path are there."
    ),
    key!(
        "runtimes.*.type",
        Type::Choice(&["berth", "oci", "shim"]),
        "\"oci\"",
        "berth: libcontainer, linked in. oci: an OCI runtime program (runc, crun, youki). shim: a containerd shim v2 \
         (containerd-shim-runc-v2, Kata, gVisor, runwasi). The default for the handler named \"berth\" is berth."
    ),
    key!("runtimes.*.path", Type::Path, "\"\"", "The program; oci and shim need it, berth has none."),
    key!(
        "runtimes.*.root",
        Type::Path,
        "\"\"",
        "Where an OCI runtime keeps its own state (its --root). Empty: runtimes/NAME in the state directory."
    ),
    key!(
        "runtimes.*.config",
        Type::Path,
        "\"\"",
        "A configuration file of a shim's own, as Kata and gVisor have one. Empty: the shim's defaults."
    ),
    key!(
        "runtimes.*.sandbox",
        Type::Choice(&["auto", "none", "container"]),
        "\"auto\"",
        "Whether a shim's pods begin with a container of their own, in which virtual machines are booted. auto: container, but \
         none for containerd-shim-runc-v2 and containerd-shim-berth-v1, which need none."
    ),
    key!(
        "runtimes.*.cgroup_writable",
        Type::Boolean,
        "false",
        "Containers may make cgroups below their own: /sys/fs/cgroup is writable for those that are not privileged as well. With \
         cgroup v2 only, where a cgroup namespace keeps the rest out of reach."
    ),
    key!(
        "runtimes.*.privileged_without_host_devices",
        Type::Boolean,
        "false",
        "Privileged containers don't get the host's devices (virtual machines have their own)."
    ),
    key!(
        "runtimes.*.privileged_without_host_devices_all_devices_allowed",
        Type::Boolean,
        "false",
        "With the former: they may use any device that they make or find all the same."
    ),
];

/// The key a dotted path names, seeing `*` as any name.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| matches(key.path, path))
}

/// Whether a dotted path is a table that holds keys, or other tables.
pub(crate) fn is_table(path: &str) -> bool {
    let depth = path.split('.').count();
    KEYS.iter().any(|key| {
        let prefix: Vec<&str> = key.path.split('.').take(depth).collect();
        key.path.split('.').count() > depth && matches(&prefix.join("."), path)
    })
}

/// Names a table may hold: keys and tables below it. `*` is left out.
pub(crate) fn names_in(table: &str) -> Vec<&'static str> {
    let depth = if table.is_empty() { 0 } else { table.split('.').count() };
    let mut names = Vec::new();
    for key in KEYS {
        let parts: Vec<&str> = key.path.split('.').collect();
        if parts.len() <= depth || !(depth == 0 || matches(&parts[..depth].join("."), table)) {
            continue;
        }
        if parts[depth] != "*" && !names.contains(&parts[depth]) {
            names.push(parts[depth]);
        }
    }
    names
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut left, mut right) = (pattern.split('.'), path.split('.'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}
