//! Mounts that a runtime can't make as the specification wants them, made beforehand by a process that can.
//!
//! The stage is a tmpfs below the bundle, in the mount namespace of the creation: it shows in no other, and ends with it. What is
//! mounted there has its ids mapped and its propagation set; the specification that the runtime gets binds it from there.
//!
//! | staged | because |
//! |---|---|
//! | mounts with mapped ids | only root outside of the container's user namespace can map them |
//! | all bind mounts of a container with a user namespace | its root may not reach their sources |
//! | overlays (image volumes) | they are mounted by root outside, with any number of layers on any kernel |
//! | for libcontainer: those with another propagation than the root's | it gives all mounts the root's |

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags, mount, move_mount, unmount};

use crate::idmap::{Namespaces, clone_tree};
use crate::rootfs;
use crate::status::{Code, Failure};
use crate::sys;
use crate::userns::{Maps, OfContainer};

/// See the module.
#[derive(Debug)]
pub(crate) struct Stage {
    directory: PathBuf,
    mounted: bool,
    count: usize,
    namespaces: Namespaces,
}

impl Stage {
    pub(crate) fn new(bundle: &Path, container: &OfContainer) -> io::Result<Self> {
        let namespaces = Namespaces::new(container)?;
        Ok(Self { directory: bundle.join("stage"), mounted: false, count: 0, namespaces })
    }

    /// The path for one more mount: a directory, or an empty file.
    fn place(&mut self, directory: bool) -> io::Result<PathBuf> {
        if !self.mounted {
            fs::create_dir_all(&self.directory)?;
            mount("stage", &self.directory, "tmpfs", MountFlags::empty(), c"mode=711,size=64k")?;
            self.mounted = true;
        }
        let path = self.directory.join(self.count.to_string());
        self.count += 1;
        if directory {
            fs::create_dir(&path)?;
        } else {
            fs::File::create(&path)?;
        }
        Ok(path)
    }

    /// Puts a detached tree on the stage.
    fn attach(&mut self, tree: &OwnedFd) -> io::Result<PathBuf> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode);
        let path = self.place(kind == rustix::fs::FileType::Directory)?;
        move_mount(tree.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(path)
    }

    /// The directory with its owners mapped, for an overlay to be made of.
    pub(crate) fn layer(&mut self, directory: &Path, maps: &Maps) -> io::Result<PathBuf> {
        let stage = |stage: &mut Self| {
            let tree = clone_tree(directory, false)?;
            sys::mount_setattr(tree.as_fd(), false, libc::MS_PRIVATE, None)?;
            stage.namespaces.apply(&tree, maps, false)?;
            stage.attach(&tree)
        };
        stage(self).map_err(|error| {
            io::Error::new(error.kind(), format!("mapping the owners of {}: {error}", directory.display()))
        })
    }

    /// Takes something off the stage. Who holds it keeps it.
    pub(crate) fn drop_layer(&self, path: &Path) {
        let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_dir(path);
    }

    fn bind(&mut self, asked: &Asked<'_>) -> io::Result<PathBuf> {
        let tree = clone_tree(asked.source, asked.recursive)?;
        if let Some((propagation, recursive)) = asked.propagation {
            sys::mount_setattr(tree.as_fd(), recursive, propagation, None)?;
        }
        if let Some((maps, recursive)) = &asked.maps {
            self.namespaces.apply(&tree, maps, *recursive)?;
        }
        self.attach(&tree)
    }
}

/// What a mount of the specification asks for.
struct Asked<'a> {
    source: &'a Path,
    recursive: bool,
    /// `MS_…`, and whether for all below as well.
    propagation: Option<(u64, bool)>,
    /// The ids, and whether for all below as well.
    maps: Option<(Maps, bool)>,
}

impl<'a> Asked<'a> {
    fn read(mount: &'a Mount, source: &'a Path, container: &OfContainer) -> Self {
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
        Self { source, recursive, propagation, maps: maps.map(|maps| (maps, has("ridmap"))) }
    }
}

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
            let asked = Asked::read(mount, &source, container);
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
            option.push_str(&format!(":{}", stage.place(true)?.display()));
        }
    }
    let place = stage.place(true)?;
    rootfs::overlay(&options, &place, stage)?;
    Ok(place)
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
