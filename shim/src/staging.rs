//! Which mounts of a specification go by way of the stage, and their way there.
//!
//! | staged | because |
//! |---|---|
//! | mounts with mapped ids | only root outside of the container's user namespace can map them |
//! | all bind mounts of a container with a user namespace | its root may not reach their sources |
//! | overlays (image volumes) | they are mounted by root outside, with any number of layers on any kernel |
//! | for libcontainer: those with another propagation than the root's | it gives all mounts the root's |

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use crate::rootfs;
use crate::stage::{Asked, Stage};
use crate::status::{Code, Failure};
use crate::userns::{Maps, OfContainer};

/// Whether the runtime that gets the specification is libcontainer, which heeds only the root's propagation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Runtime {
    Libcontainer,
    Binary,
}

/// Stages the mounts of `spec` that need it, and names the staged ones in their place. Tells whether there were any.
pub(crate) fn mounts(
    spec: &mut Spec,
    bundle: &Path,
    container: &OfContainer,
    stage: &mut Stage,
    runtime: Runtime,
) -> Result<bool, Failure> {
    let root = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let root = root.as_deref().map(|name| name.trim_start_matches('r'));
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    let label = label.filter(|label| !label.is_empty());
    let mut changed = false;
    let mut list = spec.mounts().clone().unwrap_or_default();
    for mount in &mut list {
        let failed = |error: &io::Error| {
            let what = format!("staging the mount of {}", mount.destination().display());
            Failure::new(Code::FailedPrecondition, format!("{what}: {error}"))
        };
        let path = if mount.typ().as_deref() == Some("overlay") {
            overlay(mount, stage, label.as_deref()).map_err(|error| failed(&error))?
        } else if is_bind(mount)
            && let Some(source) = mount.source()
        {
            let source = bundle.join(source);
            let asked = asked_of(mount, &source, container);
            let own_way = asked.propagation.is_some_and(|(flag, _)| match root {
                Some("shared") => flag != libc::MS_SHARED,
                Some("private") => false,
                _ => flag != libc::MS_SLAVE,
            });
            if !container.there && asked.maps.is_none() && !(runtime == Runtime::Libcontainer && own_way) {
                continue;
            }
            stage.bind(&asked).map_err(|error| failed(&error))?
        } else {
            continue;
        };
        changed = true;
        let mut options = mount.options().clone().unwrap_or_default();
        options.retain(|option| !option.contains('=') && option != "idmap" && option != "ridmap");
        if !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.insert(0, "bind".to_owned());
        }
        mount
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(path))
            .set_options(Some(options))
            .set_uid_mappings(None)
            .set_gid_mappings(None);
    }
    spec.set_mounts(Some(list));
    Ok(changed)
}

/// Mounts of kind overlay, whose options are those of mount(2), with the SELinux label of the container's files.
fn overlay(mount: &Mount, stage: &mut Stage, label: Option<&str>) -> io::Result<PathBuf> {
    let mut options = mount.options().clone().unwrap_or_default();
    options.extend(label.map(|label| format!("context=\"{label}\"")));
    let writable = options.iter().any(|option| option.starts_with("upperdir="));
    for option in options.iter_mut().filter(|option| option.starts_with("lowerdir=")) {
        // The kernel stacks two or more.
        if !writable && !option.contains(':') {
            option.push_str(&format!(":{}", stage.directory()?.display()));
        }
    }
    let place = stage.directory()?;
    rootfs::overlay(&options, &place, stage)?;
    Ok(place)
}

/// What a mount of the specification asks for.
fn asked_of<'a>(mount: &Mount, source: &'a Path, container: &OfContainer) -> Asked<'a> {
    let has = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    let propagation = mount.options().iter().flatten().rev().find_map(|option| match option.as_str() {
        "private" => Some((libc::MS_PRIVATE, false)),
        "rprivate" => Some((libc::MS_PRIVATE, true)),
        "slave" => Some((libc::MS_SLAVE, false)),
        "rslave" => Some((libc::MS_SLAVE, true)),
        "shared" => Some((libc::MS_SHARED, false)),
        "rshared" => Some((libc::MS_SHARED, true)),
        _ => None,
    });
    let own = Maps {
        uids: mount.uid_mappings().clone().unwrap_or_default(),
        gids: mount.gid_mappings().clone().unwrap_or_default(),
    };
    let maps = if !own.uids.is_empty() || !own.gids.is_empty() {
        Some(own)
    } else {
        (has("idmap") || has("ridmap")).then(|| container.maps.clone())
    };
    let recursive = mount.typ().as_deref() != Some("bind") && !has("bind") || has("rbind");
    Asked { source, recursive, propagation, maps: maps.map(|maps| (maps, has("ridmap"))) }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// Refuses a bundle that root of the container's user namespace, who is somebody else outside, can't reach: his root file system
/// is there.
pub(crate) fn check_reachable(path: &Path) -> Result<(), Failure> {
    // The root itself is his, whatever its mode.
    for directory in path.ancestors().skip(1) {
        let found = fs::metadata(directory)
            .map_err(|error| Failure::doing(&format!("looking at {}", directory.display()), &error))?;
        if found.permissions().mode() & 0o001 == 0 {
            let directory = directory.display();
            return Err(Failure::new(
                Code::FailedPrecondition,
                format!(
                    "{directory} can't be searched by users other than its owner, and root of a user namespace is one: \
                     run `chmod o+x {directory}`, or move Berth's state directory"
                ),
            ));
        }
    }
    Ok(())
}
