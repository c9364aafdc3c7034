//! What is asked: environment and configuration, checked before anything is touched.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_cni::model::{Forwarding, IpvlanMode, MacvlanMode, NetworkDriver, ParentOptions, SubnetOptions};
use berth_cni::{BridgeOptions, EndpointOptions, Network, PortMapping, Protocol};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::answer::{CONFIGURATION, DECODING, ENVIRONMENT, Failure, VERSION, VERSIONS};

/// Where records are unless `dataDir` says otherwise.
const RECORDS: &str = "/run/berth-cni";
/// Where the daemon is unless `socket` says otherwise.
const SOCKET: &str = "/run/berth/berth.sock";
/// Longest name that can be an alias.
const NAME_MAX: usize = 128;

/// A command of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// What the plugin is called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Bridge,
    Macvlan,
    Ipvlan,
    Ipam,
    Overlay,
}

/// What a command is about.
#[derive(Debug)]
pub(crate) enum Target {
    /// VERSION.
    Nothing,
    /// A network that this run serves from records of its own.
    Own(Network),
    /// A network that a daemon keeps.
    Daemon(Overlay),
}

/// An overlay of the host's daemon.
#[derive(Debug)]
pub(crate) struct Overlay {
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    pub(crate) network: String,
    /// The configuration's name.
    pub(crate) owner: String,
    /// With subnets, a network that is not there is made.
    pub(crate) subnets: Vec<SubnetOptions>,
    pub(crate) internal: bool,
    /// The driver's options in its own words.
    pub(crate) options: BTreeMap<String, String>,
    /// Names it is found by.
    pub(crate) aliases: Vec<String>,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) version: String,
    /// Where records are.
    pub(crate) records: PathBuf,
    pub(crate) target: Target,
    /// Id of the attachment; empty for commands that are about none.
    pub(crate) sandbox: String,
    pub(crate) netns: PathBuf,
    pub(crate) options: EndpointOptions,
    pub(crate) previous: Option<Value>,
    /// GC: ids of attachments that stay.
    pub(crate) valid: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    cni_version: String,
    name: String,
    bridge: String,
    master: String,
    parent: String,
    mode: String,
    mtu: u32,
    /// Nothing leaves the network.
    internal: bool,
    /// Endpoints don't reach each other, as the reference plugin calls it.
    port_isolation: bool,
    ip_masq: Option<bool>,
    hairpin_mode: Option<bool>,
    data_dir: Option<PathBuf>,
    /// Of an overlay: the daemon's socket, the network's name there, and how one that is not there is made.
    socket: Option<PathBuf>,
    network: String,
    vni: u32,
    block: u32,
    encrypted: bool,
    #[serde(deserialize_with = "given")]
    ipam: Ipam,
    #[serde(deserialize_with = "given")]
    runtime_config: Runtime,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", deserialize_with = "given")]
    valid_attachments: Vec<Attachment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ipam {
    r#type: String,
    /// As in host-local: sets of ranges; the first of each set counts.
    #[serde(deserialize_with = "given")]
    ranges: Vec<Vec<Range>>,
    subnet: Option<IpNetwork>,
    gateway: Option<IpAddr>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    subnet: IpNetwork,
    gateway: Option<IpAddr>,
    /// Addresses are given out of this part only.
    range: Option<IpNetwork>,
    #[serde(default, deserialize_with = "given")]
    reserved: Vec<IpAddr>,
    /// host-local's way to say it. It may be no subnet, which is all that can be had here.
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Runtime {
    #[serde(deserialize_with = "given")]
    port_mappings: Vec<Port>,
    mac: String,
    #[serde(deserialize_with = "given")]
    ips: Vec<String>,
}

/// Runtimes written in Go say `null` for a list without elements.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Request {
    /// Reads and checks.
    pub(crate) fn read(
        called: &str,
        variable: impl Fn(&str) -> String,
        input: &[u8],
    ) -> Result<Self, Failure> {
        let command = command(&variable("CNI_COMMAND"))?;
        let config: Config = serde_json::from_slice(input)
            .map_err(|error| Failure::new(DECODING, "the configuration can't be read", error))?;
        let version = if config.cni_version.is_empty() { "0.1.0" } else { &config.cni_version }.to_owned();
        if command != Command::Version && !VERSIONS.contains(&version.as_str()) {
            let known = format!("there are {}", VERSIONS.join(", "));
            return Err(Failure::new(VERSION, format!("CNI version {version} is not spoken"), known));
        }
        Self::checked(called, command, version.clone(), config, variable)
            .map_err(|failure| if command == Command::Version { failure } else { failure.speaking(&version) })
    }

    fn checked(
        called: &str,
        command: Command,
        version: String,
        config: Config,
        variable: impl Fn(&str) -> String,
    ) -> Result<Self, Failure> {
        let records = config.data_dir.clone().or_else(|| config.ipam.data_dir.clone());
        let mut request = Self {
            command,
            version,
            records: records.unwrap_or_else(|| RECORDS.into()),
            target: Target::Nothing,
            sandbox: String::new(),
            netns: PathBuf::new(),
            options: EndpointOptions::default(),
            previous: config.prev_result.clone(),
            valid: config
                .valid_attachments
                .iter()
                .map(|one| attachment(&one.container_id, &one.ifname))
                .collect(),
        };
        if command == Command::Version {
            return Ok(request);
        }
        // What is there goes all the same.
        if matches!(command, Command::Add | Command::Status) {
            bounded(&config.ipam)?;
        }
        request.target = match role(called)? {
            Role::Overlay => Target::Daemon(overlay(&config, &variable("CNI_ARGS"))?),
            role => Target::Own(network(role, &config)?),
        };
        if matches!(command, Command::Status | Command::Gc) {
            return Ok(request);
        }
        let required = |name: &str| {
            let value = variable(name);
            if value.is_empty() {
                return Err(Failure::new(ENVIRONMENT, format!("{name} is missing"), ""));
            }
            Ok(value)
        };
        let (id, interface) = (required("CNI_CONTAINERID")?, required("CNI_IFNAME")?);
        request.sandbox = attachment(&id, &interface);
        // What is deleted may have lost its namespace.
        request.netns =
            if command == Command::Del { variable("CNI_NETNS") } else { required("CNI_NETNS")? }.into();
        request.options = options(interface, &config.runtime_config)?;
        Ok(request)
    }
}

/// One attachment is a sandbox of its own: a container may join one network twice, by two interfaces.
fn attachment(id: &str, interface: &str) -> String {
    format!("{id}.{interface}")
}

fn command(text: &str) -> Result<Command, Failure> {
    Ok(match text {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "STATUS" => Command::Status,
        "GC" => Command::Gc,
        "VERSION" => Command::Version,
        other => {
            let known = "there are ADD, DEL, CHECK, STATUS, GC and VERSION";
            return Err(Failure::new(ENVIRONMENT, format!("CNI_COMMAND {other:?} is unknown"), known));
        }
    })
}

fn role(called: &str) -> Result<Role, Failure> {
    let name = Path::new(called).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.strip_prefix("berth-").unwrap_or(&name) {
        "bridge" => Ok(Role::Bridge),
        "macvlan" => Ok(Role::Macvlan),
        "ipvlan" => Ok(Role::Ipvlan),
        "ipam" => Ok(Role::Ipam),
        "overlay" => Ok(Role::Overlay),
        _ => {
            let known = "link it as berth-bridge, berth-macvlan, berth-ipvlan, berth-overlay or berth-ipam";
            Err(Failure::new(CONFIGURATION, format!("called as {name:?}, which says nothing"), known))
        }
    }
}

fn overlay(config: &Config, arguments: &str) -> Result<Overlay, Failure> {
    if config.name.is_empty() {
        return Err(Failure::new(CONFIGURATION, "the configuration has no name", ""));
    }
    if !matches!(config.ipam.r#type.as_str(), "" | "berth-ipam") {
        let what = format!("ipam of type {:?} can't be combined with this plugin", config.ipam.r#type);
        return Err(Failure::new(
            CONFIGURATION,
            what,
            "an overlay's addresses come from the hosts' common stock",
        ));
    }
    let network = if config.network.is_empty() { &config.name } else { &config.network };
    let mut options = BTreeMap::new();
    for (key, value) in [("vni", config.vni), ("block", config.block), ("mtu", config.mtu)] {
        if value != 0 {
            options.insert(key.to_owned(), value.to_string());
        }
    }
    if config.encrypted {
        options.insert("encrypted".to_owned(), "true".to_owned());
    }
    // What the pod is called, where the runtime says so.
    let name = arguments.split(';').find_map(|pair| pair.strip_prefix("K8S_POD_NAME="));
    let name = name.filter(|name| !name.is_empty() && name.len() <= NAME_MAX);
    Ok(Overlay {
        socket: config.socket.clone().unwrap_or_else(|| SOCKET.into()),
        network: network.clone(),
        owner: config.name.clone(),
        subnets: subnets(&config.ipam)?,
        internal: config.internal,
        options,
        aliases: name.map(str::to_owned).into_iter().collect(),
    })
}

fn network(role: Role, config: &Config) -> Result<Network, Failure> {
    let invalid = |what: &str, why: &str| Failure::new(CONFIGURATION, what.to_owned(), why);
    if config.name.is_empty() {
        return Err(invalid("the configuration has no name", ""));
    }
    let own = matches!(config.ipam.r#type.as_str(), "" | "berth-ipam");
    if role != Role::Ipam && !own {
        let what = format!("ipam of type {:?} can't be combined with this plugin", config.ipam.r#type);
        return Err(invalid(&what, "leave the type out, or use berth-ipam"));
    }
    let subnets = subnets(&config.ipam)?;
    if subnets.is_empty() {
        return Err(invalid("ipam has no subnet", "give ipam.subnet or ipam.ranges"));
    }
    fn mode<T: std::str::FromStr<Err = String> + Default>(text: &str) -> Result<T, Failure> {
        if text.is_empty() {
            return Ok(T::default());
        }
        text.parse().map_err(|error: String| Failure::new(CONFIGURATION, format!("mode {text:?}"), error))
    }
    let parent = || {
        let interface = if config.parent.is_empty() { &config.master } else { &config.parent };
        if interface.is_empty() {
            return Err(invalid("master is missing", "which interface of the host?"));
        }
        let interface = interface.clone();
        let subnets = subnets.clone();
        Ok(ParentOptions { interface, made: false, subnets, mtu: config.mtu, internal: config.internal })
    };
    let driver = match role {
        Role::Bridge => {
            let forwarding = match (config.internal, config.ip_masq, config.mode.as_str()) {
                (true, _, _) => Forwarding::Internal,
                (false, Some(false), "") => Forwarding::Routed,
                (false, _, text) => mode(text)?,
            };
            let bridge = if config.bridge.is_empty() { "bcni0" } else { &config.bridge };
            NetworkDriver::Bridge(BridgeOptions {
                bridge: bridge.to_owned(),
                subnets: subnets.clone(),
                mtu: config.mtu,
                forwarding,
                inter_container: !config.port_isolation,
                hairpin: config.hairpin_mode.unwrap_or(true),
            })
        }
        Role::Macvlan => NetworkDriver::Macvlan(mode::<MacvlanMode>(&config.mode)?, parent()?),
        Role::Ipvlan => NetworkDriver::Ipvlan(mode::<IpvlanMode>(&config.mode)?, parent()?),
        Role::Ipam | Role::Overlay => NetworkDriver::Addresses(subnets.clone()),
    };
    // Apart from the names of networks that are always there.
    Ok(Network::new(format!("cni-{}", config.name), driver))
}

/// Refuses host-local's bounds: passed over, addresses outside of them would be given out, which are somebody else's.
fn bounded(ipam: &Ipam) -> Result<(), Failure> {
    let ranges = ipam.ranges.iter().flatten().flat_map(|range| [range.range_start, range.range_end]);
    if ranges.chain([ipam.range_start, ipam.range_end]).all(|bound| bound.is_none()) {
        return Ok(());
    }
    let why = "say `range` in ipam.ranges, a part of the subnet as in 10.88.1.0/24: addresses are given out of that only";
    Err(Failure::new(CONFIGURATION, "ipam's rangeStart and rangeEnd are not known here", why))
}

fn subnets(ipam: &Ipam) -> Result<Vec<SubnetOptions>, Failure> {
    let single = ipam.subnet.map(|subnet| Range {
        subnet,
        gateway: ipam.gateway,
        range: None,
        reserved: Vec::new(),
        range_start: None,
        range_end: None,
    });
    let several = ipam.ranges.iter().filter_map(|set| set.first().cloned());
    if let Some(set) = ipam.ranges.iter().find(|set| set.len() > 1) {
        let why = format!("{} ranges in one set: one is all there can be", set.len());
        return Err(Failure::new(CONFIGURATION, "ipam.ranges", why));
    }
    let options = |range: Range| SubnetOptions {
        subnet: range.subnet,
        range: range.range,
        gateway: range.gateway,
        reserved: range.reserved,
        auxiliary: BTreeMap::new(),
    };
    Ok(single.into_iter().chain(several).map(options).collect())
}

fn options(interface: String, runtime: &Runtime) -> Result<EndpointOptions, Failure> {
    let invalid = |what: &str, value: &str| {
        Failure::new(CONFIGURATION, format!("runtimeConfig.{what} {value:?} can't be read"), "")
    };
    let address = |text: &String| {
        text.split('/').next().and_then(|text| text.parse().ok()).ok_or_else(|| invalid("ips", text))
    };
    let mac = match runtime.mac.as_str() {
        "" => None,
        text => {
            let bytes: Option<Vec<u8>> =
                text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            Some(bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| invalid("mac", text))?)
        }
    };
    let port = |port: &Port| {
        let protocol = match port.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(invalid("portMappings", other)),
        };
        let host_ip = match port.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| invalid("portMappings", text))?),
        };
        Ok(PortMapping { protocol, host_ip, host_port: port.host_port, container_port: port.container_port })
    };
    Ok(EndpointOptions {
        addresses: runtime.ips.iter().map(address).collect::<Result<_, _>>()?,
        mac,
        interface,
        ports: runtime.port_mappings.iter().map(port).collect::<Result<_, _>>()?,
        ..EndpointOptions::default()
    })
}
