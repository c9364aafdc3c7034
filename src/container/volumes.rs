//! Volumes that an image declares: directories of the container's own, filled with what the image has there.
//!
//! They lie beside the writable layer and go with it. What the container mounts at such a place, or above it, comes first.

use std::collections::HashSet;
use std::ffi::{CString, OsString};
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::error::Error;
use super::spec::{self, Volume, layers};
use crate::proto::runtime::v1::ContainerConfig;

/// Makes the directories below `parent`, for the volumes that no mount covers. Reads the image's files: it runs where
/// blocking is allowed.
pub(super) fn make(
    image: &ImageConfiguration,
    config: &ContainerConfig,
    lower: &[PathBuf],
    parent: &Path,
) -> Result<Vec<Volume>, Error> {
    let declared = image.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default();
    let mut destinations =
        declared.iter().map(|path| spec::destination(path)).collect::<Result<Vec<_>, _>>()?;
    destinations.sort();
    destinations.dedup();
    let mounted: Vec<PathBuf> = config
        .mounts
        .iter()
        .map(|mount| spec::destination(&mount.container_path))
        .collect::<Result<_, _>>()?;
    destinations.retain(|path| !mounted.iter().any(|mount| path.starts_with(mount)));
    let mut volumes = Vec::new();
    for (number, destination) in destinations.into_iter().enumerate() {
        let source = parent.join(number.to_string());
        fill(lower, &destination, &source).map_err(|error| Error::Path {
            action: "filling the volume",
            path: destination.clone(),
            source: error,
        })?;
        volumes.push(Volume { destination, source });
    }
    Ok(volumes)
}

/// Makes the directory `target`, with what the image of these layers, the topmost first, has at `path`.
pub(crate) fn fill(lower: &[PathBuf], path: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    match layers::directories(lower, path)? {
        Some(directories) => copy(&directories, target),
        None => Ok(()),
    }
}

/// Copies the stack of `directories`, the topmost first, into `target`, which is there.
fn copy(directories: &[PathBuf], target: &Path) -> io::Result<()> {
    let mut seen: HashSet<OsString> = HashSet::new();
    for (index, directory) in directories.iter().enumerate() {
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            if !seen.insert(name.clone()) {
                continue;
            }
            let (from, to) = (directory.join(&name), target.join(&name));
            let metadata = fs::symlink_metadata(&from)?;
            if is_whiteout(&metadata) {
                continue;
            }
            if metadata.is_dir() {
                fs::create_dir(&to)?;
                copy(&stack(from, &directories[index + 1..], &name)?, &to)?;
            } else {
                file(&from, &to, &metadata)?;
            }
        }
    }
    match directories.first() {
        Some(top) => attributes(top, target, &fs::symlink_metadata(top)?),
        None => Ok(()),
    }
}

/// The directories that show at one name, given the topmost.
fn stack(top: PathBuf, below: &[PathBuf], name: &OsString) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![top];
    for directory in below {
        if found.last().is_some_and(|upper| layers::hides_below(upper)) {
            break;
        }
        let path = directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.push(path),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Overlayfs, "Whiteouts": a character device 0/0.
fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn file(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        let mode = rustix::fs::Mode::from_raw_mode(metadata.mode() & 0o7777);
        let kind = rustix::fs::FileType::from_raw_mode(metadata.mode());
        rustix::fs::mknodat(CWD, to, kind, mode, metadata.rdev())?;
    }
    attributes(from, to, metadata)
}

/// Owner, mode, extended attributes and times. The mode comes after the owner: a change of owner takes set-user-id away.
fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, Permissions::from_mode(metadata.mode() & 0o7777))?;
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(from, &mut names).unwrap_or(0);
    let mut value = vec![0_u8; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let name = CString::new(name)?;
        let length = rustix::fs::lgetxattr(from, &name, &mut value)?;
        rustix::fs::lsetxattr(to, &name, &value[..length], rustix::fs::XattrFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: metadata.atime(), tv_nsec: metadata.atime_nsec() },
        last_modification: Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() },
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::runtime::v1::Mount;

    fn image(volumes: serde_json::Value) -> ImageConfiguration {
        serde_json::from_value(serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Volumes": volumes},
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap()
    }

    #[test]
    fn volumes_hold_what_the_image_shows() {
        let root = tempfile::Builder::new().prefix("berth-volumes").tempdir_in("/run").unwrap();
        let (top, bottom) = (root.path().join("top"), root.path().join("bottom"));
        for path in ["top/data/both", "bottom/data/both", "bottom/data/old", "bottom/plain"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(top.join("data/both/new"), "new").unwrap();
        fs::write(bottom.join("data/both/kept"), "kept").unwrap();
        fs::write(bottom.join("data/gone"), "gone").unwrap();
        let whiteout = rustix::fs::Mode::empty();
        let device = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, top.join("data/gone"), device, whiteout, 0).unwrap();
        symlink("both/kept", top.join("data/link")).unwrap();
        fs::set_permissions(bottom.join("data/both/kept"), Permissions::from_mode(0o4750)).unwrap();
        lchown(top.join("data"), Some(1000), Some(2000)).unwrap();
        lchown(bottom.join("data/both/kept"), Some(3), Some(4)).unwrap();
        fs::set_permissions(bottom.join("data/both/kept"), Permissions::from_mode(0o4750)).unwrap();

        let image =
            image(serde_json::json!({"/data": {}, "/data/": {}, "/absent": {}, "/covered/below": {}}));
        let config = ContainerConfig {
            mounts: vec![Mount { container_path: "/covered".into(), ..Default::default() }],
            ..Default::default()
        };
        let parent = root.path().join("volumes");
        let volumes = make(&image, &config, &[top, bottom], &parent).unwrap();
        let shown: Vec<_> = volumes.iter().map(|volume| volume.destination.display().to_string()).collect();
        assert_eq!(shown, ["/absent", "/data"]);
        let data = &volumes[1].source;
        let owner =
            |path: &Path| fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!(owner(data), (1000, 2000, 0o755));
        assert_eq!(owner(&data.join("both/kept")), (3, 4, 0o4750));
        assert_eq!(fs::read_to_string(data.join("both/new")).unwrap(), "new");
        assert_eq!(fs::read_to_string(data.join("link")).unwrap(), "kept");
        assert!(data.join("old").is_dir() && !data.join("gone").exists());
    }
}
