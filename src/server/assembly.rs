//! Opens the rooms with what the configuration says, and gathers the facts that calls report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_cni::{BridgeOptions, Controller};

use super::Error;
use super::handlers::{self, Abilities};
use crate::apparmor;
use crate::cdi::Registry;
use crate::cgroup;
use crate::cni::{self, Cni};
use crate::config::{CgroupDriver, Config, Etcd, Loaded, NetworkMode, NetworkStore, Runtime, SeccompProfile};
use crate::container::CheckpointOptions;
use crate::container::spec::{self, HandlerOptions, SeccompDefault};
use crate::cri::{Facts, Handler};
use crate::events::Recent;
use crate::image::{self, Images, Limits};
use crate::meter::Meter;
use crate::nri::{self, Nri};
use crate::pod::{self, Lifecycle, Pods};
use crate::recovery;
use crate::shim::{self, Backend, Launcher};
use crate::stats::{self, Stats};
use crate::streaming::{self, Streaming};
use crate::volume::Volumes;
use crate::watchdog::{self, Watchdog};

/// What the faces call.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    pub(crate) pods: Pods,
    pub(crate) networks: Controller,
    pub(crate) volumes: Volumes,
    pub(crate) images: Images,
    pub(crate) facts: Arc<Facts>,
    pub(crate) stats: Stats,
    pub(crate) streaming: Streaming,
    /// `None` when it is turned off.
    pub(crate) nri: Option<Nri>,
    pub(crate) watchdog: Watchdog,
    pub(crate) recent: Recent,
}

/// Opens all rooms; pods come back from their records before this returns.
pub(crate) async fn open(loaded: &Loaded, meter: &Meter) -> Result<Rooms, Error> {
    let config = &loaded.config;
    let images = Images::open(image_options(config, meter)).map_err(Error::Images)?;
    let volumes = Volumes::open(&config.root).map_err(Error::Volumes)?;
    let networks = Controller::open(network_options(config)).map_err(Error::Network)?;
    let driver = cgroup_driver(config.cgroup.driver);
    let abilities = handlers::ask(&config.runtimes);
    let cni = Cni::open(cni_options(config, meter)).map_err(Error::Cni)?;
    let mut options = pod_options(config, driver, &abilities, meter, cni.clone())?;
    let nri = config.nri.enable.then(|| Nri::new(nri_options(config, options.devices.clone())));
    options.lifecycle = nri.clone().map(|nri| Arc::new(nri) as Arc<dyn Lifecycle>);
    let (naming, mode) = (options.naming.clone(), options.host.cgroup);
    let facts = facts(loaded, driver, &abilities, &options.host);
    let pods = Pods::open(options, images.clone(), networks.clone()).map_err(Error::Pods)?;
    let recent = Recent::of(&pods);
    recovery::run(&pods, &networks, &cni, &images, &meter.recoveries).await.map_err(Error::Pods)?;
    super::overlay::serve(&pods, &networks);
    if let Some(nri) = &nri {
        // They are told of what was there before the first call can change it.
        nri.launch(pods.clone()).await;
    }
    let stats = Stats::new(stats::Options {
        pods: pods.clone(),
        networks: networks.clone(),
        naming,
        mode,
        filesystem: images.fs_info().mountpoint,
    });
    tokio::spawn(stats.clone().sample());
    let streaming = Streaming::open(&streaming_options(config), pods.clone()).map_err(Error::Streaming)?;
    tokio::spawn(recovery::watch(pods.clone(), networks.clone(), meter.recoveries.clone()));
    tokio::spawn(cni.watch());
    // Within the time after which the service manager restarts a daemon that shows no life.
    let limit = super::systemd::watchdog().map_or(watchdog::LIMIT, |period| period / 2);
    let watchdog = Watchdog::new(meter.board.clone(), limit);
    let facts = Arc::new(facts);
    Ok(Rooms { pods, images, facts, stats, streaming, networks, volumes, nri, watchdog, recent })
}

fn image_options(config: &Config, meter: &Meter) -> image::Options {
    let images = &config.images;
    image::Options {
        config_path: images.config_path.clone(),
        max_parallel_downloads: images.max_parallel_downloads,
        progress_timeout: images.progress_timeout,
        pinned: images.pinned.clone(),
        limits: Limits {
            layer_bytes: images.max_layer_size,
            layer_entries: images.max_layer_entries,
            decompression_ratio: images.max_decompression_ratio,
            ..Limits::default()
        },
        discard_unpacked_layers: images.discard_unpacked_layers,
        meter: Some(meter.pulls.clone()),
        writes: Some(meter.writes.clone()),
        ..image::Options::new(&config.root)
    }
}

fn streaming_options(config: &Config) -> streaming::Options {
    let crate::config::Streaming { address, idle_timeout, tls } = config.streaming.clone();
    let tls = tls.map(|tls| streaming::TlsFiles {
        certificate: tls.certificate,
        key: tls.key,
        client_ca: tls.client_ca,
    });
    streaming::Options { address, idle_timeout, tls }
}

fn network_options(config: &Config) -> berth_cni::Options {
    let bridge = &config.network.bridge;
    let mut options = BridgeOptions::new(&bridge.name, bridge.subnets.iter().copied());
    options.mtu = bridge.mtu.unwrap_or(0);
    berth_cni::Options {
        definitions: Some(config.root.join("networks")),
        table: config.network.table.clone(),
        interface_prefix: interface_prefix(&bridge.name),
        overlay: match &config.network.store {
            NetworkStore::Etcd(etcd) => Some(overlay_options(etcd, &config.root)),
            NetworkStore::Embedded => None,
        },
        ..berth_cni::Options::new(config.state.join("network.redb"), options)
    }
}

fn overlay_options(etcd: &Etcd, root: &Path) -> berth_cni::overlay::Options {
    let (certificate, key) = etcd.identity.clone().unzip();
    berth_cni::overlay::Options {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        tls: berth_cni::overlay::TlsFiles { ca: etcd.ca.clone(), certificate, key },
        timeout: etcd.timeout,
        lease: etcd.lease,
        address: etcd.address,
        port: etcd.port,
        wireguard_port: etcd.wireguard_port,
        host_file: root.join("host-id"),
    }
}

/// How the host's side of pods' interfaces is named: by the daemon's bridge, so that daemons side by side never take each
/// other's for their own.
fn interface_prefix(bridge: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = hex::encode(&Sha256::digest(bridge)[..2]);
    format!("v{hash}x")
}

fn nri_options(config: &Config, devices: Registry) -> nri::Options {
    nri::Options {
        plugin_path: config.nri.plugin_path.clone(),
        plugin_config_path: config.nri.plugin_config_path.clone(),
        registration_timeout: config.nri.plugin_registration_timeout,
        request_timeout: config.nri.plugin_request_timeout,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        devices,
    }
}

fn cni_options(config: &Config, meter: &Meter) -> cni::Options {
    let network = &config.network;
    cni::Options {
        mode: match network.mode {
            NetworkMode::Auto => cni::Mode::Auto,
            NetworkMode::Builtin => cni::Mode::Builtin,
            NetworkMode::Cni => cni::Mode::Cni,
        },
        configurations: network.cni_conf_dir.clone(),
        plugins: network.cni_bin_dirs.clone(),
        timeout: network.cni_timeout,
        records: config.root.join("records").join("cni"),
        writes: meter.writes.clone(),
    }
}

/// Handlers by name, and what they can do.
type Able = BTreeMap<String, Abilities>;

fn pod_options(
    config: &Config,
    driver: CgroupDriver,
    able: &Able,
    meter: &Meter,
    cni: Cni,
) -> Result<pod::Options, Error> {
    let program = shim_program(config.shim.as_deref())?;
    let mut host = host(config.selinux);
    host.no_user_namespaces = shim::user_namespaces(&program, &config.root, &config.state);
    let able = |name: &str| able.get(name).cloned().unwrap_or_default();
    let asked = |name: &str| config.runtime_options.get(name).copied().unwrap_or_default();
    let handlers = config.runtimes.iter().map(|(name, runtime)| crate::container::Handler {
        name: name.clone(),
        backend: match runtime {
            Runtime::Berth => Backend::BuiltIn,
            Runtime::Oci { path, root } => Backend::Oci { path: path.clone(), root: root.clone() },
            Runtime::Shim { path, config: file, .. } => Backend::Shim {
                path: path.clone(),
                address: config.grpc.address.clone(),
                config: file.clone(),
            },
        },
        sandbox: matches!(runtime, Runtime::Shim { sandbox: true, .. }),
        restores: able(name).restores,
        options: HandlerOptions {
            recursive_read_only_mounts: able(name).recursive_read_only_mounts,
            user_namespaces: able(name).user_namespaces,
            unset_seccomp_profile: match &config.unset_seccomp_profile {
                SeccompProfile::Unconfined => SeccompDefault::Unconfined,
                SeccompProfile::RuntimeDefault => SeccompDefault::RuntimeDefault,
                SeccompProfile::Localhost(path) => SeccompDefault::Localhost(path.clone()),
            },
            stages_images: !matches!(runtime, Runtime::Shim { .. }),
            cgroup_writable: asked(name).cgroup_writable,
            privileged_without_host_devices: asked(name).privileged_without_host_devices,
            privileged_without_host_devices_all_devices_allowed: asked(name).all_devices_allowed,
            ..HandlerOptions::default()
        },
    });
    let driver = match driver {
        CgroupDriver::Systemd => cgroup::Driver::Systemd,
        _ => cgroup::Driver::Cgroupfs,
    };
    Ok(pod::Options {
        root: config.root.clone(),
        state: config.state.clone(),
        launcher: Launcher::new(program).with_filters(config.state.join("seccomp")),
        handlers: handlers.collect(),
        default_handler: config.default_runtime.clone(),
        naming: cgroup::Naming::new(driver, &config.cgroup.root),
        host,
        default_network: config.network.default.clone(),
        stages: meter.stages.clone(),
        writes: meter.writes.clone(),
        recoveries: meter.recoveries.clone(),
        board: meter.board.clone(),
        devices: Registry::new(config.devices.cdi_spec_dirs.clone()),
        checkpoint: CheckpointOptions::new(config.checkpoint.enable, config.checkpoint.criu.clone()),
        lifecycle: None,
        cni,
    })
}

/// The machine's facts, with the AppArmor profile loaded that containers get by default.
fn host(selinux: bool) -> spec::Host {
    let mut host = spec::Host::detect();
    host.selinux = host.selinux.filter(|_| selinux);
    if host.apparmor {
        if let Err(error) = apparmor::load_default() {
            tracing::warn!(error = crate::error::chain(&error), "the default AppArmor profile");
        }
        host.apparmor_default =
            apparmor::is_loaded(apparmor::DEFAULT_PROFILE).then(|| apparmor::DEFAULT_PROFILE.to_owned());
    }
    host
}

/// The shim's program: the configured one, else the one beside the daemon, else the first in `PATH`.
fn shim_program(configured: Option<&Path>) -> Result<PathBuf, Error> {
    const NAME: &str = "berth-shim";
    if let Some(path) = configured {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|directory| directory.join(NAME)))
        .find(|candidate| candidate.is_file())
        .ok_or(Error::NoShim)
}

fn facts(loaded: &Loaded, cgroup_driver: CgroupDriver, able: &Able, host: &spec::Host) -> Facts {
    let config = &loaded.config;
    let no_user_namespaces = host.no_user_namespaces.as_deref();
    let bridge = &config.network.bridge;
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cgroup_driver,
        default_runtime: config.default_runtime.clone(),
        handlers: able
            .iter()
            .map(|(name, abilities)| Handler {
                name: name.clone(),
                recursive_read_only_mounts: abilities.recursive_read_only_mounts,
                user_namespaces: no_user_namespaces.is_none() && abilities.user_namespaces,
            })
            .collect(),
        supplemental_groups_policy: true,
        config: loaded.settings.to_json(),
        features: super::features::found(no_user_namespaces, host.selinux.as_ref()),
        network: serde_json::json!({
            "default": config.network.default,
            "bridge": bridge.name,
        }),
    }
}

/// Detected once: the kubelet follows it, and it must not change while pods are there. systemd makes the groups where it
/// runs the machine with cgroup v2, as it then wants to be the only writer; with v1 its slices are but one hierarchy of
/// many.
fn cgroup_driver(wanted: CgroupDriver) -> CgroupDriver {
    match wanted {
        CgroupDriver::Auto => {
            let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
            if unified && sd_notify::booted().unwrap_or(false) {
                CgroupDriver::Systemd
            } else {
                CgroupDriver::Cgroupfs
            }
        }
        set => set,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_prefixes_have_one_length_and_differ_by_bridge() {
        let (a, b) = (interface_prefix("berth0"), interface_prefix("berth1"));
        assert_ne!(a, b);
        assert_eq!((a.len(), b.len()), (6, 6));
    }
}
