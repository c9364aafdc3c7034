//! The daemon's configuration: one TOML file and the `conf.d/*.toml` beside it, every key with a default.
//!
//! Three steps, each in a file of its own: [`Settings`] lays defaults, files and command line over each other, key by
//! key, and keeps the origin of each value; `read` turns them into [`Config`] and refuses what can't be; `render`
//! writes the default file, the effective settings and the reference. The keys themselves are a table in `schema`.
//! All problems are found at once and named with file and line.

pub mod import;
mod problem;
mod read;
mod reader;
mod render;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
pub(crate) mod value;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

pub use problem::{Error, Origin, Problem};
pub use render::{default_file, dump, reference};
pub use settings::Settings;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// The runtime handler that is always there.
pub const BUILTIN_RUNTIME: &str = "berth";

/// What to read the configuration from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file; it must be there. Without one [`DEFAULT_FILE`] is read if it is there.
    pub file: Option<PathBuf>,
    /// `--address`: wins over `grpc.address`.
    pub address: Option<PathBuf>,
    /// `--root`: wins over `root`.
    pub root: Option<PathBuf>,
    /// `--state`: wins over `state`.
    pub state: Option<PathBuf>,
    /// `--log-level`: wins over `log.level`.
    pub log_level: Option<String>,
}

/// A configuration that was read, and where each value of it comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values, typed and checked.
    pub config: Config,
    /// The values with their origin.
    pub settings: Settings,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
}

impl Source {
    /// Reads the file and its drop-ins, and applies the command line.
    pub fn load(&self) -> Result<Loaded, Error> {
        let (mut settings, mut problems) = Settings::defaults();
        let main = self.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let mut files = Vec::new();
        if self.file.is_some() || main.exists() {
            files.push(main.clone());
        }
        files.extend(drop_ins(&main)?);
        for path in &files {
            let text =
                std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
            settings.overlay(path, &text, &mut problems);
        }
        let options = [
            ("grpc.address", "--address", self.address.as_deref()),
            ("root", "--root", self.root.as_deref()),
            ("state", "--state", self.state.as_deref()),
            ("log.level", "--log-level", self.log_level.as_deref().map(Path::new)),
        ];
        for (key, option, value) in options {
            if let Some(value) = value {
                settings.set(key, option, &value.to_string_lossy());
            }
        }
        let config = read::config(&settings, &mut problems);
        match (config, problems.is_empty()) {
            (Some(config), true) => Ok(Loaded { config, settings, files }),
            _ => Err(Error::Invalid(problems)),
        }
    }
}

/// `conf.d/*.toml` beside the file, in lexical order. Hidden files are left out: editors make such.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let directory = main.with_file_name("conf.d");
    let read = |source| Error::Read { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

// === The values ===

/// The whole configuration. The meaning of each field is that of the key of the same name in `docs/configuration.md`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `root`
    pub root: PathBuf,
    /// `state`
    pub state: PathBuf,
    /// `shim`; none: beside the daemon, then in `PATH`
    pub shim: Option<PathBuf>,
    /// `default_runtime`: a name that [`Config::runtimes`] has
    pub default_runtime: String,
    /// `unset_seccomp_profile`
    pub unset_seccomp_profile: SeccompProfile,
    /// `selinux`: whether containers get labels where SELinux is on
    pub selinux: bool,
    /// `[grpc]`
    pub grpc: Grpc,
    /// `[log]`
    pub log: Log,
    /// `[streaming]`
    pub streaming: Streaming,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[cgroup]`
    pub cgroup: Cgroup,
    /// `[images]`
    pub images: Images,
    /// `[network]`
    pub network: Network,
    /// `[devices]`
    pub devices: Devices,
    /// `[checkpoint]`
    pub checkpoint: Checkpoint,
    /// `[nri]`
    pub nri: Nri,
    /// `[runtimes.NAME]`: always holds [`BUILTIN_RUNTIME`]
    pub runtimes: BTreeMap<String, Runtime>,
    /// What the containers of each get
    pub runtime_options: BTreeMap<String, RuntimeOptions>,
}

/// `[grpc]`
#[derive(Clone, Debug)]
pub struct Grpc {
    /// Path of the unix socket, resolved: `berth.sock` in the state directory unless set.
    pub address: PathBuf,
    /// Group of the socket.
    pub gid: u32,
    /// Bytes of the largest message.
    pub max_message_size: usize,
    /// Cap on the time of a call.
    pub deadline: Duration,
    /// Changing calls at once.
    pub max_concurrent_calls: usize,
    /// Reading calls at once.
    pub max_concurrent_reads: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Level or directives.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `[streaming]`
#[derive(Clone, Debug)]
pub struct Streaming {
    /// Where the server listens.
    pub address: SocketAddr,
    /// A session without traffic ends after this.
    pub idle_timeout: Duration,
    /// Serves by TLS with these files; none: in the clear.
    pub tls: Option<StreamingTls>,
}

/// The files of `[streaming]` for TLS, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingTls {
    /// The server's certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of clients; none: any client may connect.
    pub client_ca: Option<PathBuf>,
}

/// `[metrics]`
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where the listener is; none: off.
    pub address: Option<Listen>,
}

/// A place to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// IP address and port.
    Tcp(SocketAddr),
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// `[cgroup]`
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Who makes the groups.
    pub driver: CgroupDriver,
    /// Group for what has no parent of its own.
    pub root: String,
}

/// Who makes the control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Detected at start.
    Auto,
    /// systemd, over D-Bus.
    Systemd,
    /// We, in the file system.
    Cgroupfs,
}

/// `[images]`
#[derive(Clone, Debug)]
pub struct Images {
    /// Directories of `<host>/hosts.toml`.
    pub config_path: Vec<PathBuf>,
    /// Layers of one image that download at once.
    pub max_parallel_downloads: usize,
    /// A transfer without progress ends after this.
    pub progress_timeout: Duration,
    /// References that are never collected.
    pub pinned: Vec<String>,
    /// Bytes of the largest layer, unpacked.
    pub max_layer_size: u64,
    /// Entries of one layer.
    pub max_layer_entries: u64,
    /// Bytes out for a byte in.
    pub max_decompression_ratio: u64,
    /// Whether compressed blobs of unpacked layers are dropped.
    pub discard_unpacked_layers: bool,
}

/// `[network]`
#[derive(Clone, Debug)]
pub struct Network {
    /// Who attaches pods.
    pub mode: NetworkMode,
    /// Network of pods that name none.
    pub default: String,
    /// Name of our nftables table.
    pub table: String,
    /// CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Longest time of one CNI plugin's run.
    pub cni_timeout: Duration,
    /// `[network.bridge]`
    pub bridge: Bridge,
    /// Where networks and addresses are recorded.
    pub store: NetworkStore,
}

/// Who attaches pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// CNI plugins when there is a configuration for them, else we.
    Auto,
    /// Always we.
    Builtin,
    /// Always CNI plugins.
    Cni,
}

/// Where networks and addresses are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkStore {
    /// On this node.
    Embedded,
    /// In etcd.
    Etcd(Box<Etcd>),
}

/// `[network.etcd]` and `[network.overlay]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// URLs.
    pub endpoints: Vec<String>,
    /// Prefix of all keys.
    pub prefix: String,
    /// Authorities of the servers' certificates.
    pub ca: Option<PathBuf>,
    /// Own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Longest time of one call.
    pub timeout: Duration,
    /// How long a silent node is remembered.
    pub lease: Duration,
    /// Underlay address; none: from the default route.
    pub address: Option<IpAddr>,
    /// UDP port of VXLAN.
    pub port: u16,
    /// UDP port of WireGuard.
    pub wireguard_port: u16,
}

/// `[network.bridge]`
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Name of the interface.
    pub name: String,
    /// Address pools that don't overlap, first family first.
    pub subnets: Vec<IpNetwork>,
    /// MTU in bytes; none: from the route out.
    pub mtu: Option<u32>,
}

/// `[devices]`
#[derive(Clone, Debug)]
pub struct Devices {
    /// Directories of CDI files.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

/// `[checkpoint]`
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Whether there are checkpoints at all.
    pub enable: bool,
    /// The criu program, if one is named.
    pub criu: Option<PathBuf>,
}

/// `[nri]`
#[derive(Clone, Debug)]
pub struct Nri {
    /// Whether there are plugins at all.
    pub enable: bool,
    /// Socket that plugins connect to.
    pub socket_path: PathBuf,
    /// Plugins to launch.
    pub plugin_path: PathBuf,
    /// Their configurations.
    pub plugin_config_path: PathBuf,
    /// For a plugin to register.
    pub plugin_registration_timeout: Duration,
    /// For a plugin to answer.
    pub plugin_request_timeout: Duration,
    /// Whether plugins can't connect.
    pub disable_connections: bool,
}

/// The seccomp profile of containers that name none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeccompProfile {
    /// `unconfined`
    #[default]
    Unconfined,
    /// `runtime/default`
    RuntimeDefault,
    /// `localhost/` and a path
    Localhost(PathBuf),
}

/// What containers of a handler get, whatever runs them: more of `[runtimes.NAME]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// `cgroup_writable`
    pub cgroup_writable: bool,
    /// `privileged_without_host_devices`
    pub privileged_without_host_devices: bool,
    /// `privileged_without_host_devices_all_devices_allowed`
    pub all_devices_allowed: bool,
}

/// `[runtimes.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// libcontainer, linked in.
    Berth,
    /// An OCI runtime program.
    Oci {
        /// The program.
        path: PathBuf,
        /// Its state directory, resolved.
        root: PathBuf,
    },
    /// A containerd shim v2.
    Shim {
        /// The program.
        path: PathBuf,
        /// A configuration file of the shim's own.
        config: Option<PathBuf>,
        /// Whether a pod begins with a container that stands for its sandbox.
        sandbox: bool,
    },
}
