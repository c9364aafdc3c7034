//! From settings to [`Config`]: types, ranges and what values must be to each other.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::problem::{Problem, suggestion};
use super::reader::{Reader, name_fits};
use super::settings::Settings;
use super::{
    BUILTIN_RUNTIME, Bridge, Cgroup, CgroupDriver, Checkpoint, Config, Devices, Etcd, Grpc, Images, Listen,
    Log, LogFormat, Metrics, Network, NetworkMode, NetworkStore, Nri, Runtime, RuntimeOptions,
    SeccompProfile, Streaming, StreamingTls,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Reads all settings. `None` or new `problems` when something is wrong.
pub(crate) fn config(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Config> {
    let reader = Reader { settings, problems: RefCell::default() };
    let config = reader.config();
    problems.append(&mut reader.problems.into_inner());
    config
}

impl Reader<'_> {
    // Each `let` finds its own problems; only then `?` gives up, so that one run names them all.
    fn config(&self) -> Option<Config> {
        let version: Option<u32> = self.number("version", 1..=1);
        let root = self.path("root");
        let state = self.path("state");
        let shim = self.optional_path("shim");
        let grpc = self.grpc(state.as_deref());
        let log = self.log();
        let streaming = self.streaming();
        let metrics = self.metrics();
        let cgroup = self.cgroup();
        let images = self.images();
        let network = self.network();
        let cdi_spec_dirs = self.paths("devices.cdi_spec_dirs");
        let checkpoint = self.checkpoint();
        let nri = self.nri();
        let runtimes = self.runtimes(state.as_deref());
        let unset_seccomp_profile = self.seccomp_profile("unset_seccomp_profile");
        let selinux = self.choice("selinux", &[("auto", true), ("off", false)]);
        let default_runtime = self.text("default_runtime");
        if !runtimes.contains_key(&default_runtime) {
            let names: Vec<&str> = runtimes.keys().map(String::as_str).collect();
            let hint = suggestion(&default_runtime, &names);
            self.refuse("default_runtime", format!("no runtime of the name {default_runtime:?}{hint}"));
        }
        let (root, state) = (root?, state?);
        if root == state {
            self.refuse(
                "state",
                "is the same directory as `root`: one is kept at a reboot, the other is not",
            );
        }
        version?;
        Some(Config {
            root,
            state,
            shim,
            default_runtime,
            unset_seccomp_profile: unset_seccomp_profile?,
            selinux: selinux?,
            grpc: grpc?,
            log: log?,
            streaming: streaming?,
            metrics,
            cgroup: cgroup?,
            images: images?,
            network: network?,
            devices: Devices { cdi_spec_dirs },
            checkpoint: checkpoint?,
            nri: nri?,
            runtime_options: runtimes.keys().map(|name| (name.clone(), self.runtime_options(name))).collect(),
            runtimes,
        })
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        let criu = self.optional_path("checkpoint.criu");
        Some(Checkpoint { enable: self.boolean("checkpoint.enable")?, criu })
    }

    fn grpc(&self, state: Option<&Path>) -> Option<Grpc> {
        let address = match self.optional_path("grpc.address") {
            Some(path) => Some(path),
            None if self.text("grpc.address").is_empty() => state.map(|state| state.join("berth.sock")),
            None => None,
        };
        if let Some(address) = &address {
            // sun_path of unix(7) holds 108 bytes with the terminating zero.
            if address.as_os_str().len() > 107 {
                self.refuse("grpc.address", format!("{} is longer than 107 bytes", address.display()));
            }
            if address.ends_with("run/crio/crio.sock") {
                self.refuse(
                    "grpc.address",
                    "the kubelet takes a socket of this name for CRI-O's: choose another",
                );
            }
        }
        let gid = self.number("grpc.gid", 0..=i64::from(u32::MAX - 1));
        let max_message_size = self.size("grpc.max_message_size", MIB..=GIB);
        let deadline = self.duration("grpc.deadline", SECOND..=DAY);
        let max_concurrent_calls = self.number("grpc.max_concurrent_calls", 1..=65536);
        let max_concurrent_reads = self.number("grpc.max_concurrent_reads", 1..=65536);
        Some(Grpc {
            address: address?,
            gid: gid?,
            max_message_size: usize::try_from(max_message_size?).ok()?,
            deadline: deadline?,
            max_concurrent_calls: max_concurrent_calls?,
            max_concurrent_reads: max_concurrent_reads?,
        })
    }

    fn log(&self) -> Option<Log> {
        let format = self.choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        let level = self.text("log.level");
        // The filter takes a lone unknown word for the name of a module, and would then log nothing.
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let word = level.to_lowercase();
        if level.is_empty() || (!level.contains(['=', ',']) && !LEVELS.contains(&word.as_str())) {
            self.refuse("log.level", format!("no such level: {level:?}{}", suggestion(&word, &LEVELS)));
        } else if let Err(error) = level.parse::<tracing_subscriber::filter::Targets>() {
            self.refuse("log.level", error);
        }
        Some(Log { format: format?, level })
    }

    fn streaming(&self) -> Option<Streaming> {
        let address = self.socket_address("streaming.address");
        let idle_timeout = self.duration("streaming.idle_timeout", SECOND..=DAY * 7);
        Some(Streaming { address: address?, idle_timeout: idle_timeout?, tls: self.streaming_tls() })
    }

    fn streaming_tls(&self) -> Option<StreamingTls> {
        let (certificate_key, key_key) = ("streaming.tls_cert_file", "streaming.tls_key_file");
        let client_ca_key = "streaming.tls_client_ca_file";
        let (certificate, key) = (self.optional_path(certificate_key), self.optional_path(key_key));
        let client_ca = self.optional_path(client_ca_key);
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(StreamingTls { certificate, key, client_ca }),
            (Some(_), None) => {
                self.refuse(certificate_key, format!("`{key_key}` is missing: a certificate needs its key"));
                None
            }
            (None, Some(_)) => {
                self.refuse(key_key, format!("`{certificate_key}` is missing: a key needs its certificate"));
                None
            }
            (None, None) => {
                if client_ca.is_some() {
                    self.refuse(
                        client_ca_key,
                        format!("clients are asked for certificates over TLS only: set `{certificate_key}`"),
                    );
                }
                None
            }
        }
    }

    fn metrics(&self) -> Metrics {
        let text = self.text("metrics.address");
        let address = match text.as_str() {
            "" => None,
            path if path.starts_with('/') => self.optional_path("metrics.address").map(Listen::Unix),
            _ => self.socket_address("metrics.address").map(Listen::Tcp),
        };
        Metrics { address }
    }

    fn cgroup(&self) -> Option<Cgroup> {
        let driver = self.choice(
            "cgroup.driver",
            &[
                ("auto", CgroupDriver::Auto),
                ("systemd", CgroupDriver::Systemd),
                ("cgroupfs", CgroupDriver::Cgroupfs),
            ],
        );
        let root = self.text("cgroup.root");
        if !root.ends_with(".slice") {
            self.absolute("cgroup.root", &root, None);
        }
        Some(Cgroup { driver: driver?, root })
    }

    fn images(&self) -> Option<Images> {
        let config_path = self.paths("images.config_path");
        let max_parallel_downloads = self.number("images.max_parallel_downloads", 1..=64);
        let progress_timeout = self.duration("images.progress_timeout", SECOND..=DAY);
        let pinned = self.list("images.pinned");
        for (reference, origin) in &pinned {
            if reference.is_empty() || reference.contains(char::is_whitespace) {
                self.refuse_at(
                    origin.clone(),
                    "images.pinned",
                    format!("{reference:?} is no image reference"),
                );
            }
        }
        let max_layer_size = self.size("images.max_layer_size", MIB..=u64::MAX);
        let max_layer_entries = self.number("images.max_layer_entries", 1..=i64::MAX);
        let max_decompression_ratio = self.number("images.max_decompression_ratio", 2..=i64::MAX);
        let discard_unpacked_layers = self.boolean("images.discard_unpacked_layers");
        Some(Images {
            config_path,
            max_parallel_downloads: max_parallel_downloads?,
            progress_timeout: progress_timeout?,
            pinned: pinned.into_iter().map(|(reference, _)| reference).collect(),
            max_layer_size: max_layer_size?,
            max_layer_entries: max_layer_entries?,
            max_decompression_ratio: max_decompression_ratio?,
            discard_unpacked_layers: discard_unpacked_layers?,
        })
    }

    fn network(&self) -> Option<Network> {
        let mode = self.choice(
            "network.mode",
            &[("auto", NetworkMode::Auto), ("builtin", NetworkMode::Builtin), ("cni", NetworkMode::Cni)],
        );
        let default = self.text("network.default");
        if default.is_empty() {
            self.refuse("network.default", "names no network");
        }
        let table = self.text("network.table");
        if !name_fits(&table, 64, "_-") {
            let message = format!("{table:?} is no table name: letters, digits, `_` and `-`, at most 64");
            self.refuse("network.table", message);
        }
        let cni_conf_dir = self.path("network.cni_conf_dir");
        let cni_bin_dirs = self.paths("network.cni_bin_dirs");
        let cni_timeout = self.duration("network.cni_timeout", SECOND..=SECOND * 600);
        let bridge = self.bridge();
        let etcd = self.choice("network.store", &[("embedded", false), ("etcd", true)]);
        let store = if etcd? { NetworkStore::Etcd(Box::new(self.etcd()?)) } else { NetworkStore::Embedded };
        Some(Network {
            mode: mode?,
            default,
            table,
            cni_conf_dir: cni_conf_dir?,
            cni_bin_dirs,
            cni_timeout: cni_timeout?,
            bridge: bridge?,
            store,
        })
    }

    fn nri(&self) -> Option<Nri> {
        let enable = self.boolean("nri.enable");
        let socket_path = self.path("nri.socket_path");
        if let Some(path) = socket_path.as_ref().filter(|path| path.as_os_str().len() > 107) {
            self.refuse("nri.socket_path", format!("{} is longer than 107 bytes", path.display()));
        }
        let plugin_path = self.path("nri.plugin_path");
        let plugin_config_path = self.path("nri.plugin_config_path");
        let millis = Duration::from_millis;
        let registration =
            self.duration("nri.plugin_registration_timeout", millis(100)..=Duration::from_secs(300));
        let request = self.duration("nri.plugin_request_timeout", millis(10)..=Duration::from_secs(60));
        let disable_connections = self.boolean("nri.disable_connections");
        Some(Nri {
            enable: enable?,
            socket_path: socket_path?,
            plugin_path: plugin_path?,
            plugin_config_path: plugin_config_path?,
            plugin_registration_timeout: registration?,
            plugin_request_timeout: request?,
            disable_connections: disable_connections?,
        })
    }

    fn etcd(&self) -> Option<Etcd> {
        let endpoints = self.etcd_endpoints();
        let prefix = self.text("network.etcd.prefix");
        if !prefix.starts_with('/') || prefix.len() > 256 {
            self.refuse("network.etcd.prefix", "begins with `/` and has at most 256 bytes");
        }
        let ca = self.optional_path("network.etcd.ca_file");
        let tls = endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
        if tls && endpoints.iter().any(|endpoint| endpoint.starts_with("http:")) {
            self.refuse("network.etcd.endpoints", "all of them are https, or none");
        }
        if tls && ca.is_none() {
            self.refuse("network.etcd.ca_file", "https endpoints need the authority of their certificates");
        }
        let certificate = self.optional_path("network.etcd.cert_file");
        let identity = match (certificate, self.optional_path("network.etcd.key_file")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                self.refuse(
                    "network.etcd.cert_file",
                    "a certificate needs its key (`key_file`), a key its certificate",
                );
                None
            }
        };
        if !tls && (ca.is_some() || identity.is_some()) {
            self.refuse("network.etcd.endpoints", "certificates are for https endpoints");
        }
        let timeout = self.duration("network.etcd.timeout", Duration::from_millis(100)..=SECOND * 60);
        let lease = self.duration("network.etcd.lease", SECOND * 2..=SECOND * 3600);
        let address = match self.text("network.overlay.address").as_str() {
            "" => None,
            text => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    self.refuse("network.overlay.address", format!("{text:?} is no IP address"));
                    None
                }
            },
        };
        let port = self.number("network.overlay.port", 1..=65535);
        let wireguard_port = self.number("network.overlay.wireguard_port", 1..=65535);
        Some(Etcd {
            endpoints,
            prefix,
            ca,
            identity,
            timeout: timeout?,
            lease: lease?,
            address,
            port: port?,
            wireguard_port: wireguard_port?,
        })
    }

    fn etcd_endpoints(&self) -> Vec<String> {
        let endpoints = self.list("network.etcd.endpoints");
        if endpoints.is_empty() {
            self.refuse("network.store", "\"etcd\" needs `network.etcd.endpoints`");
        }
        for (endpoint, origin) in &endpoints {
            if !url::Url::parse(endpoint)
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            {
                let message = format!("{endpoint:?} is no http or https URL");
                self.refuse_at(origin.clone(), "network.etcd.endpoints", message);
            }
        }
        endpoints.into_iter().map(|(endpoint, _)| endpoint).collect()
    }

    fn bridge(&self) -> Option<Bridge> {
        let name = self.text("network.bridge.name");
        // dev_valid_name() of the kernel: IFNAMSIZ is 16 with the terminating zero.
        let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(refused) {
            let message = format!("{name:?} is no interface name: 1 to 15 bytes, no `/`, `:` or space");
            self.refuse("network.bridge.name", message);
        }
        let subnets = self.subnets("network.bridge.subnets");
        let ipv6 = subnets.iter().any(IpNetwork::is_ipv6);
        let mtu: u32 = match self.number("network.bridge.mtu", 0..=65535)? {
            small @ 1..1280 if ipv6 => {
                self.refuse("network.bridge.mtu", format!("{small} is too small for IPv6, which needs 1280"));
                small
            }
            small @ 1..68 => {
                self.refuse("network.bridge.mtu", format!("{small} is too small for IPv4, which needs 68"));
                small
            }
            fitting => fitting,
        };
        Some(Bridge { name, subnets, mtu: (mtu != 0).then_some(mtu) })
    }

    fn runtimes(&self, state: Option<&Path>) -> BTreeMap<String, Runtime> {
        let mut runtimes = BTreeMap::from([(BUILTIN_RUNTIME.to_owned(), Runtime::Berth)]);
        for name in self.settings.names_below("runtimes") {
            let table = format!("runtimes.{name}");
            // A RuntimeClass handler is a DNS label (RFC 1123).
            let label = name_fits(name, 63, "-") && !name.starts_with('-') && !name.ends_with('-');
            if !label || name.contains(|c: char| c.is_ascii_uppercase()) {
                self.refuse(&table, "a handler's name is lower case letters, digits and `-`, at most 63");
            }
            if let Some(runtime) = self.runtime(name, &table, state) {
                runtimes.insert(name.to_owned(), runtime);
            }
        }
        runtimes
    }

    fn seccomp_profile(&self, key: &str) -> Option<SeccompProfile> {
        match self.text(key).as_str() {
            "" | "unconfined" => Some(SeccompProfile::Unconfined),
            "runtime/default" | "docker/default" => Some(SeccompProfile::RuntimeDefault),
            other => match other.strip_prefix("localhost/") {
                // Both `localhost//a/b` and `localhost/a/b` are in use.
                Some(path) => {
                    let path = format!("/{}", path.trim_start_matches('/'));
                    self.absolute(key, &path, None).map(SeccompProfile::Localhost)
                }
                None => {
                    self.refuse(
                        key,
                        format!(
                            "{other:?} is none of \"unconfined\", \"runtime/default\", \"localhost/PATH\""
                        ),
                    );
                    None
                }
            },
        }
    }

    fn runtime_options(&self, name: &str) -> RuntimeOptions {
        let set = |key: &str| {
            // A handler that no table names has the defaults.
            self.boolean(&format!("runtimes.{name}.{key}")).unwrap_or(false)
        };
        RuntimeOptions {
            cgroup_writable: set("cgroup_writable"),
            privileged_without_host_devices: set("privileged_without_host_devices"),
            all_devices_allowed: set("privileged_without_host_devices_all_devices_allowed"),
        }
    }

    fn runtime(&self, name: &str, table: &str, state: Option<&Path>) -> Option<Runtime> {
        #[derive(Clone, Copy, PartialEq)]
        enum Type {
            Berth,
            Oci,
            Shim,
        }
        #[derive(Clone, Copy)]
        enum Sandbox {
            Auto,
            None,
            Container,
        }
        let key = format!("{table}.type");
        let kind = match self.entry(&key) {
            Some(_) => {
                self.choice(&key, &[("berth", Type::Berth), ("oci", Type::Oci), ("shim", Type::Shim)])?
            }
            None if name == BUILTIN_RUNTIME => Type::Berth,
            None => Type::Oci,
        };
        let (path_key, root_key) = (format!("{table}.path"), format!("{table}.root"));
        let root = self.optional_path(&root_key);
        if root.is_some() && kind != Type::Oci {
            self.refuse(&root_key, "only a runtime of type \"oci\" has one");
        }
        if name == BUILTIN_RUNTIME && kind != Type::Berth {
            self.refuse(&key, "the handler \"berth\" is the built-in one: give the other a name of its own");
            return None;
        }
        let (config_key, sandbox_key) = (format!("{table}.config"), format!("{table}.sandbox"));
        let file = self.optional_path(&config_key);
        let words = [("auto", Sandbox::Auto), ("none", Sandbox::None), ("container", Sandbox::Container)];
        let sandbox = self.choice(&sandbox_key, &words);
        for (key, given) in [(&config_key, file.is_some()), (&sandbox_key, sandbox.is_some())] {
            if given && kind != Type::Shim {
                self.refuse(key, "only a runtime of type \"shim\" has one");
            }
        }
        let path = self.optional_path(&path_key);
        if kind == Type::Berth {
            if path.is_some() {
                self.refuse(&path_key, "a runtime of type \"berth\" is linked in and has no program");
            }
            return Some(Runtime::Berth);
        }
        if path.is_none() && self.text(&path_key).is_empty() {
            self.refuse(table, "`path` is missing: which program?");
        }
        let path = path?;
        Some(match kind {
            Type::Shim => {
                let sandbox = match sandbox {
                    Some(Sandbox::None) => false,
                    Some(Sandbox::Container) => true,
                    Some(Sandbox::Auto) | None => wants_sandbox(&path),
                };
                Runtime::Shim { path, config: file, sandbox }
            }
            _ => Runtime::Oci { path, root: root.or_else(|| Some(state?.join("runtimes").join(name)))? },
        })
    }
}

/// Whether a shim expects that a pod begins with a container of its own, as containerd's pods do. Those that only run processes
/// need none.
fn wants_sandbox(program: &Path) -> bool {
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    !name.starts_with("containerd-shim-runc-") && !name.starts_with("containerd-shim-berth-")
}
