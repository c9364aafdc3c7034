//! Opens the rooms with what the configuration says, and gathers the facts that calls report.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_cni::{BridgeOptions, Controller};

use super::Error;
use crate::cgroup;
use crate::cni::{self, Cni};
use crate::config::{CgroupDriver, Config, Loaded, NetworkMode, NetworkStore, Runtime};
use crate::container::spec::{self, HandlerOptions};
use crate::cri::{Facts, Handler};
use crate::image::{self, Images, Limits};
use crate::pod::{self, Pods};
use crate::recovery;
use crate::shim::{Backend, Launcher};
use crate::stats::{self, Stats};
use crate::streaming::{self, Streaming};

/// What the faces call.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    pub(crate) pods: Pods,
    pub(crate) networks: Controller,
    pub(crate) images: Images,
    pub(crate) facts: Arc<Facts>,
    pub(crate) stats: Stats,
    pub(crate) streaming: Streaming,
}

/// Opens all rooms; pods come back from their records before this returns.
pub(crate) async fn open(loaded: &Loaded) -> Result<Rooms, Error> {
    let config = &loaded.config;
    refuse_unbuilt(config)?;
    let images = Images::open(image_options(config)).map_err(Error::Images)?;
    let networks = Controller::open(network_options(config)).map_err(Error::Network)?;
    let driver = cgroup_driver(config.cgroup.driver);
    let cni = Cni::open(cni_options(config)).map_err(Error::Cni)?;
    let options = pod_options(config, driver, cni.clone())?;
    let (naming, mode) = (options.naming.clone(), options.host.cgroup);
    let pods = Pods::open(options, images.clone(), networks.clone()).map_err(Error::Pods)?;
    recovery::run(&pods, &networks, &cni, &images).await.map_err(Error::Pods)?;
    let stats = Stats::new(stats::Options {
        pods: pods.clone(),
        networks: networks.clone(),
        naming,
        mode,
        filesystem: images.fs_info().mountpoint,
    });
    tokio::spawn(stats.clone().sample());
    let streaming = Streaming::open(&streaming_options(config), pods.clone()).map_err(Error::Streaming)?;
    tokio::spawn(recovery::watch(pods.clone(), networks.clone()));
    tokio::spawn(cni.watch());
    Ok(Rooms { pods, networks, images, facts: Arc::new(facts(loaded, driver)), stats, streaming })
}

/// What may be configured, but is not built: said at once, not half done.
fn refuse_unbuilt(config: &Config) -> Result<(), Error> {
    if let NetworkStore::Etcd { .. } = config.network.store {
        return Err(Error::Unbuilt("network.store = \"etcd\""));
    }
    if config.runtimes.values().any(|runtime| matches!(runtime, Runtime::Shim { .. })) {
        return Err(Error::Unbuilt("runtimes.NAME.type = \"shim\""));
    }
    Ok(())
}

fn image_options(config: &Config) -> image::Options {
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
        ..image::Options::new(&config.root)
    }
}

fn streaming_options(config: &Config) -> streaming::Options {
    let crate::config::Streaming { address, idle_timeout } = config.streaming;
    streaming::Options { address, idle_timeout }
}

fn network_options(config: &Config) -> berth_cni::Options {
    let bridge = &config.network.bridge;
    let mut options = BridgeOptions::new(&bridge.name, bridge.subnets.iter().copied());
    options.mtu = bridge.mtu.unwrap_or(0);
    berth_cni::Options {
        definitions: Some(config.root.join("networks")),
        table: config.network.table.clone(),
        interface_prefix: interface_prefix(&bridge.name),
        ..berth_cni::Options::new(config.state.join("network.redb"), options)
    }
}

/// How the host's side of pods' interfaces is named: by the daemon's bridge, so that daemons side by side never take each
/// other's for their own.
fn interface_prefix(bridge: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = hex::encode(&Sha256::digest(bridge)[..2]);
    format!("v{hash}x")
}

fn cni_options(config: &Config) -> cni::Options {
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
    }
}

fn pod_options(config: &Config, driver: CgroupDriver, cni: Cni) -> Result<pod::Options, Error> {
    let handlers = config.runtimes.iter().map(|(name, runtime)| crate::container::Handler {
        name: name.clone(),
        backend: match runtime {
            Runtime::Oci { path, root } => Backend::Oci { path: path.clone(), root: root.clone() },
            _ => Backend::BuiltIn,
        },
        options: HandlerOptions {
            recursive_read_only_mounts: recursive_read_only(runtime),
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
        launcher: Launcher::new(shim_program(config.shim.as_deref())?)
            .with_filters(config.state.join("seccomp")),
        handlers: handlers.collect(),
        default_handler: config.default_runtime.clone(),
        naming: cgroup::Naming::new(driver, &config.cgroup.root),
        host: spec::Host::detect(),
        default_network: config.network.default.clone(),
        cni,
    })
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

fn facts(loaded: &Loaded, cgroup_driver: CgroupDriver) -> Facts {
    let config = &loaded.config;
    let bridge = &config.network.bridge;
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cgroup_driver,
        default_runtime: config.default_runtime.clone(),
        handlers: config.runtimes.iter().map(|(name, runtime)| handler(name, runtime)).collect(),
        supplemental_groups_policy: true,
        config: loaded.settings.to_json(),
        features: super::features::found(),
        network: serde_json::json!({
            "default": config.network.default,
            "bridge": bridge.name,
            "subnets": bridge.subnets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
    }
}

/// Features that are not built are reported as missing.
fn handler(name: &str, runtime: &Runtime) -> Handler {
    Handler {
        name: name.to_owned(),
        recursive_read_only_mounts: recursive_read_only(runtime),
        user_namespaces: false,
    }
}

/// Whether mounts can be read-only with all below them: the kernel has mount_setattr(2), and the runtime uses it (the
/// OCI runtime specification, features.md, "mountOptions").
fn recursive_read_only(runtime: &Runtime) -> bool {
    let kernel = has_mount_setattr();
    match runtime {
        Runtime::Oci { path, .. } => kernel && knows_mount_option(path, "rro"),
        _ => kernel,
    }
}

/// mount_setattr(2) is there since linux 5.12.
fn has_mount_setattr() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 12)
}

fn knows_mount_option(runtime: &Path, option: &str) -> bool {
    let Ok(output) = std::process::Command::new(runtime).arg("features").output() else { return false };
    let features: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    features["mountOptions"].as_array().is_some_and(|known| known.iter().any(|known| known == option))
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
