//! Making a container: directories, specification, shim; everything but running its command.
//!
//! The answer to CreateContainer does not wait for the kernel's part: the shim creates the container (namespaces, mounts,
//! cgroup) while the caller is on its way to StartContainer, which waits for it and reports what went wrong.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use oci_spec::runtime::Spec;

use super::adjust::{Adjust, adjusted};
use super::error::Error;
use super::restore::{self, Origin};
use super::snapshot::{ContainerSnapshot, Layout, log_path};
use super::spec::{self, IdMaps, NamespacePaths, PodFiles, SpecInput};
use super::tools::{Surroundings, Tools};
use super::{end_without_shim, remove, volumes};
use crate::cdi;
use crate::image::{Image, LayerHold};
use crate::meter::Stage;
use crate::proto::berth::v1::{ContainerPhase, ContainerRecord};
use crate::proto::runtime::v1::{ContainerConfig, ContainerUser};
use crate::shim::{self, Restore, Shim, ShimMount};
use crate::telemetry::Place;

/// How the shim's creation of a container went: its process id, or why there is none.
pub(crate) type CreationResult = Result<u32, Arc<shim::Error>>;

/// The creation under way in the shim. Clones see the same result.
pub(crate) type Creation = Shared<BoxFuture<'static, CreationResult>>;

/// A container that was made.
#[derive(Debug)]
pub(crate) struct Making {
    pub(crate) record: ContainerRecord,
    pub(crate) shim: Shim,
    pub(crate) creation: Creation,
    /// Keeps the layers while the container is there.
    pub(crate) hold: LayerHold,
}

/// A creation that is over already, for containers found again after a restart.
pub(crate) fn creation_done(pid: u32) -> Creation {
    futures::future::ready(Ok(pid)).boxed().shared()
}

/// A creation that an earlier daemon began, and whose shim has not answered since.
pub(crate) fn creation_under_way(shim: Shim) -> Creation {
    async move { shim.state().await.map(|_| 0).map_err(Arc::new) }.boxed().shared()
}

/// Makes container `id`, as `adjust` changes it if there is one. When a step fails, all before it is undone.
///
/// # Errors
/// [`Error`] of the step that failed.
pub(crate) async fn make(
    tools: &Arc<Tools>,
    pod: &Arc<Surroundings>,
    id: String,
    mut config: ContainerConfig,
    target_pid: Option<u32>,
    adjust: Option<Adjust>,
    now: i64,
) -> Result<Making, Error> {
    crate::cgroup::prime(tools.host.cgroup);
    let reference = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let origin = restore::find(tools, pod, &reference).await?;
    let image = match &origin {
        Some(origin) => Arc::clone(&origin.base),
        None => tools.images.get(&reference).ok_or(Error::NoImage { reference: reference.clone() })?,
    };
    let log = log_path(&pod.config, &config);
    if let Some(directory) = log.as_deref().and_then(Path::parent)
        && !directory.is_dir()
    {
        return Err(Error::NoLogDirectory { path: directory.to_owned() });
    }
    let mounted = mounted_images(tools, &mut config)?;
    let chains: Vec<_> = std::iter::once(&image)
        .chain(mounted.iter().flatten())
        .chain(origin.iter().filter_map(|origin| origin.image.as_ref()))
        .flat_map(|image| image.chain.clone())
        .collect();
    let hold = tools.images.hold_chains(&chains);
    let record = ContainerRecord {
        id: id.clone(),
        pod_id: pod.pod_id.clone(),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
        chain_ids: chains.iter().map(ToString::to_string).collect(),
        created_at: now,
        phase: ContainerPhase::ContainerCreating.into(),
        cgroups_path: cgroups_path(tools, pod, &id)?,
        config: Some(config),
        ..Default::default()
    };
    tools.records.put(&id, &record).await?;
    let mut record = record;
    let from = MadeFrom { image: &image, mounted: &mounted, origin };
    let made = make_recorded(tools, pod, &mut record, from, target_pid, adjust).await;
    match made.map(|(shim, creation)| (record.clone(), shim, creation)) {
        Ok((record, shim, creation)) => Ok(Making { record, shim, creation, hold }),
        Err(error) => {
            end_without_shim(tools, &record).await;
            for left in remove(tools, &record).await {
                tracing::warn!(container = id, error = crate::error::chain(&left), "undoing a failed create");
            }
            Err(error)
        }
    }
}

/// The images that mounts name, one place a mount. Puts into the mounts what statuses show of them (KEP-5365).
fn mounted_images(tools: &Tools, config: &mut ContainerConfig) -> Result<Vec<Option<Arc<Image>>>, Error> {
    let mut images = Vec::new();
    for mount in &mut config.mounts {
        let Some(spec) = mount.image.as_mut().filter(|spec| !spec.image.is_empty()) else {
            images.push(None);
            continue;
        };
        let image =
            tools.images.get(&spec.image).ok_or_else(|| Error::NoImage { reference: spec.image.clone() })?;
        // The reference that PullImage answers with.
        spec.image_ref.clone_from(&image.id);
        images.push(Some(image));
    }
    Ok(images)
}

/// Where the container's cgroup is below the hierarchies' mount points, for either driver: the runtime makes the directory
/// that the name stands for.
fn cgroups_path(tools: &Tools, pod: &Surroundings, id: &str) -> Result<String, Error> {
    let parent = pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let (parent, _) = tools.naming.pod(parent, &pod.pod_id)?;
    Ok(format!("/{}", tools.naming.container_path(&parent, id)?.display()))
}

/// What a container is made from.
struct MadeFrom<'a> {
    image: &'a Arc<Image>,
    /// The images that its mounts name, one place a mount.
    mounted: &'a [Option<Arc<Image>>],
    /// The checkpoint that it continues.
    origin: Option<Origin>,
}

async fn make_recorded(
    tools: &Arc<Tools>,
    pod: &Arc<Surroundings>,
    record: &mut ContainerRecord,
    from: MadeFrom<'_>,
    target_pid: Option<u32>,
    adjust: Option<Adjust>,
) -> Result<(Shim, Creation), Error> {
    let MadeFrom { image, mounted, origin } = from;
    let layout = tools.layout(&record.id);
    let lower = tools.images.lower_dirs(image).await?;
    let mut image_layers = Vec::new();
    for image in mounted {
        image_layers.push(match image {
            Some(image) => tools.images.lower_dirs(image).await?,
            None => Vec::new(),
        });
    }
    let final_spec = adjust.is_none();
    let preparing = {
        let (tools, pod, image) = (Arc::clone(tools), Arc::clone(pod), Arc::clone(image));
        let (record, layout) = (record.clone(), layout.clone());
        let layers = Layers { root: lower.clone(), mounts: image_layers };
        let preparing = tokio::task::spawn_blocking(move || {
            let mut prepared = prepare(&tools, &pod, &record, &image, &layout, &layers, target_pid)?;
            if let Some(origin) = origin {
                let images = origin.settle(&layout, &layers.root, tools.images.limits())?;
                let work = layout.bundle.join("criu");
                let criu = tools.checkpoint.program().map_err(super::checkpoint::Error::from)?;
                prepared.restore = Some(Restore { images, work, criu, limit: restore::LIMIT });
            }
            if final_spec {
                write_bundle(&layout.bundle, &prepared.spec)?;
            }
            Ok::<_, Error>(prepared)
        });
        async { preparing.await.map_err(|_| Error::Interrupted("making a container"))? }
    };
    let mut prepared = tools.stages.time(Stage::ContainerCreateRootfs, &record.id, preparing).await?;
    record.user = Some(prepared.user);
    record.stop_signal = prepared.stop_signal;
    if let Some(adjust) = adjust {
        let config = Arc::new(record.config.clone().unwrap_or_default());
        let snapshot = ContainerSnapshot::new(record, config, &pod.config, &layout, None);
        let (spec, notes) = adjusted(adjust, snapshot, prepared.spec, &tools.host).await?;
        prepared.notes.extend(notes);
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.map(|path| path.display().to_string()).unwrap_or_default();
        if path != record.cgroups_path {
            // Before the cgroup is made: it is this container's to remove.
            record.cgroups_path = path;
            tools.records.put(&record.id, record).await?;
        }
        let bundle = layout.bundle.clone();
        tokio::task::spawn_blocking(move || write_bundle(&bundle, &spec))
            .await
            .map_err(|_| Error::Interrupted("making a container"))??;
    }
    for note in &prepared.notes {
        tracing::info!(container = record.id, note, "specification");
    }
    let launching = async { tools.launcher.spawn(&record.id, &layout.bundle, &pod.handler.backend) };
    let shim = tools.stages.time(Stage::ContainerCreateShim, &record.id, launching).await?;
    let terminal = record.config.as_ref().is_some_and(|config| config.tty);
    let log = record.config.as_ref().and_then(|config| log_path(&pod.config, config));
    // Clients can attach in any case; without a log they are the only ones to see the output.
    let output = log.map_or_else(|| "attach:".to_owned(), |path| format!("cri-log://{}", path.display()));
    let input = match record.config.as_ref() {
        Some(config) if config.stdin && config.stdin_once => "attach:once",
        Some(config) if config.stdin => "attach:",
        _ => "",
    };
    let creation = {
        let (maps, label) = (spec::user_namespace(&pod.config)?, prepared.mount_label.as_deref());
        let (shim, rootfs) = (shim.clone(), overlay(&lower, &layout, maps.as_ref(), label));
        let (id, stages, place) = (record.id.clone(), tools.stages.clone(), Place::here());
        let restore = prepared.restore.clone();
        // A task of its own: it goes on while nobody waits for it.
        let task = tokio::spawn(async move {
            let stderr = if terminal { String::new() } else { output.clone() };
            let creating =
                shim.create(vec![rootfs], input.to_owned(), output, stderr, terminal, restore.as_ref());
            let result = stages.time_at(&place, Stage::ContainerRuntimeCreate, &id, creating).await;
            if let Err(error) = &result {
                tracing::warn!(container = id, error = crate::error::chain(error), "creating the container");
            }
            result.map_err(Arc::new)
        });
        async move {
            task.await.unwrap_or_else(|_| {
                Err(Arc::new(shim::Error::Lost {
                    id: String::new(),
                    call: "Create",
                    reason: "the daemon is shutting down".to_owned(),
                }))
            })
        }
        .boxed()
        .shared()
    };
    record.phase = ContainerPhase::ContainerCreated.into();
    tools.records.put(&record.id, record).await?;
    Ok((shim, creation))
}

/// Directories of layers, the top one first.
struct Layers {
    /// Of the container's image.
    root: Vec<PathBuf>,
    /// Of the images that its mounts name, one place a mount.
    mounts: Vec<Vec<PathBuf>>,
}

/// What only the specification's builder finds out.
struct Prepared {
    user: ContainerUser,
    stop_signal: i32,
    /// SELinux label of the container's files.
    mount_label: Option<String>,
    spec: Spec,
    notes: Vec<String>,
    /// What to continue instead of beginning.
    restore: Option<Restore>,
}

/// Makes the directories and builds the specification. Reads the image's files, so it runs on a thread that may block.
fn prepare(
    tools: &Tools,
    pod: &Surroundings,
    record: &ContainerRecord,
    image: &Image,
    layout: &Layout,
    layers: &Layers,
    target_pid: Option<u32>,
) -> Result<Prepared, Error> {
    for directory in [layout.bundle.join("rootfs"), layout.upper(), layout.work()] {
        fs::create_dir_all(&directory).map_err(|source| Error::Path {
            action: "making the directory",
            path: directory,
            source,
        })?;
    }
    root_permissions(&layout.upper(), &layers.root)?;
    let rootfs = layout.bundle.join("rootfs");
    let target = target_pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid")));
    let empty = ContainerConfig::default();
    let config = record.config.as_ref().unwrap_or(&empty);
    let asked_for = config.image.as_ref().map_or("", |image| {
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }
    });
    let volumes = volumes::make(&image.config, config, &layers.root, &layout.volumes())?;
    let input = SpecInput {
        pod_id: &pod.pod_id,
        pod: &pod.config,
        container: config,
        image: &image.config,
        image_name: asked_for,
        lower_dirs: &layers.root,
        volumes: &volumes,
        image_layers: &layers.mounts,
        rootfs: &rootfs,
        namespaces: NamespacePaths {
            user: pod.user.as_deref(),
            network: pod.network.as_deref(),
            ipc: pod.ipc.as_deref(),
            uts: pod.uts.as_deref(),
            pid: pod.pid.as_deref(),
            target_pid: target.as_deref(),
        },
        files: PodFiles {
            hosts: pod.hosts.as_deref(),
            hostname: pod.hostname.as_deref(),
            resolv_conf: pod.resolv_conf.as_deref(),
            shm: pod.shm.as_deref(),
        },
        cgroups_path: &record.cgroups_path,
        handler: &pod.handler.options,
        host: &tools.host,
    };
    let mut built = spec::build(&input)?;
    let named = config.cdi_devices.iter().map(|device| device.name.as_str());
    tools.devices.inject(&mut built.spec, named.chain(cdi::annotated(&config.annotations)))?;
    let mount_label = built.spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    if let Some(label) = &mount_label {
        let asked = config.mounts.iter().filter(|mount| mount.selinux_relabel);
        let own = volumes.iter().map(|volume| volume.source.as_path());
        for path in asked.map(|mount| Path::new(&mount.host_path)).chain(own) {
            super::relabel(path, label)?;
        }
    }
    Ok(Prepared {
        user: built.user.to_cri(),
        stop_signal: built.stop_signal,
        mount_label,
        spec: built.spec,
        notes: built.notes,
        restore: None,
    })
}

/// Gives the merged root the owner and mode of the image's own root directory: the overlay shows those of the topmost
/// directory, which is the fresh writable one.
fn root_permissions(upper: &Path, lower: &[PathBuf]) -> Result<(), Error> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(top) = lower.first() else { return Ok(()) };
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Path { action, path, source }
    };
    let found = fs::metadata(top).map_err(failed("reading the layer", top))?;
    std::os::unix::fs::chown(upper, Some(found.uid()), Some(found.gid()))
        .map_err(failed("changing the owner of", upper))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(found.mode() & 0o7777))
        .map_err(failed("changing the mode of", upper))
}

/// Writes `config.json` for the runtime, and `process.json` (its `process` object alone) from which execs are made
/// without reading the whole again.
fn write_bundle(bundle: &Path, spec: &Spec) -> Result<(), Error> {
    let write = |name: &str, json: serde_json::Result<Vec<u8>>| {
        let path = bundle.join(name);
        let bytes = json.map_err(|source| Error::Json { action: "writing", path: path.clone(), source })?;
        fs::write(&path, bytes).map_err(|source: io::Error| Error::Path { action: "writing", path, source })
    };
    write("config.json", serde_json::to_vec(spec))?;
    write("process.json", serde_json::to_vec(spec.process()))
}

/// The container's root: the image's layers below a writable directory, all with their owners as the pod's user namespace
/// has them, and with the SELinux label of the container.
fn overlay(lower: &[PathBuf], layout: &Layout, maps: Option<&IdMaps>, label: Option<&str>) -> ShimMount {
    let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy()).collect();
    let mut options = vec![
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", layout.upper().display()),
        format!("workdir={}", layout.work().display()),
    ];
    if let Some((uids, gids)) = maps.map(IdMaps::texts) {
        options.extend([format!("uidmap={uids}"), format!("gidmap={gids}"), "idmap-upper".to_owned()]);
    }
    // Quoted, as a label has commas.
    options.extend(label.map(|label| format!("context=\"{label}\"")));
    ShimMount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }
}
