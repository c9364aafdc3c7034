//! The files of a checkpoint: what the container changed, and the archive itself.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, CWD, linkat};

use super::Error;
use crate::container::spec::layers;
use crate::image::pack::{self, Bounds, Hidden};

/// Most files of a checkpoint, and of a container's writable layer.
const ENTRIES: u64 = 10_000_000;
/// criu's own files beside the images.
const LOGS: [&str; 2] = ["dump.log", "stats-dump"];

/// Refuses a location that can never be written.
pub(super) fn check(location: &Path) -> Result<(), Error> {
    let refused = |problem| Err(Error::Location { path: location.to_owned(), problem });
    let bytes = location.as_os_str().as_bytes();
    if bytes.is_empty() {
        return refused("it is missing");
    }
    if !location.is_absolute() {
        return refused("it is not an absolute path");
    }
    if bytes.contains(&0) || bytes.len() > 4095 {
        return refused("it is no path");
    }
    if bytes.ends_with(b"/") || location.file_name().is_none() {
        return refused("it names no file");
    }
    if location.symlink_metadata().is_ok() {
        return Err(Error::Exists(location.to_owned()));
    }
    match location.parent().map(Path::metadata) {
        Some(Ok(parent)) if parent.is_dir() => Ok(()),
        _ => refused("its directory does not exist"),
    }
}

/// Packs what the writable layer `upper` has into `rootfs-diff.tar`, and lists what it hides of `lower`.
pub(super) fn changes(upper: &Path, lower: &[PathBuf], directory: &Path) -> Result<(), Error> {
    let path = directory.join("rootfs-diff.tar");
    let stop = AtomicBool::new(false);
    let bounds = Bounds { overlay: true, entries: ENTRIES, bytes: u64::MAX, stop: &stop, owners: None };
    let file = private(&path).map_err(Error::at("creating", &path))?;
    let (mut writer, hidden) = pack::changes(pack::open(upper)?, BufWriter::new(file), bounds)?;
    writer.flush().map_err(Error::at("writing", &path))?;
    let deleted = deleted(upper, lower, hidden);
    if deleted.is_empty() {
        return Ok(());
    }
    let path = directory.join("deleted.files");
    let json = serde_json::to_vec(&deleted).map_err(io::Error::from);
    json.and_then(|json| private(&path)?.write_all(&json)).map_err(Error::at("writing", &path))
}

/// Names from the root that the layers below have and the container does not see.
fn deleted(upper: &Path, lower: &[PathBuf], hidden: Hidden) -> Vec<String> {
    let name = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    let mut list: Vec<String> = hidden.deleted.iter().map(|path| name(path)).collect();
    for directory in &hidden.opaque {
        let relative = Path::new(std::ffi::OsStr::from_bytes(directory));
        // What was a link there leads to the node's own files, as seen from here.
        for layer in layers::directories_at(lower, relative).unwrap_or_default() {
            for entry in fs::read_dir(layer).into_iter().flatten().flatten() {
                let below = relative.join(entry.file_name());
                if upper.join(&below).symlink_metadata().is_err() {
                    list.push(name(below.as_os_str().as_bytes()));
                }
            }
        }
    }
    list.sort();
    list.dedup();
    list
}

/// Puts criu's log and statistics beside the images, and takes them from where it wrote them.
pub(super) fn take_logs(from: &Path, directory: &Path) -> Result<(), Error> {
    for name in LOGS {
        let (source, target) = (from.join(name), directory.join(name));
        match fs::copy(&source, &target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::at("copying", &source)(error));
            }
            _ => {}
        }
    }
    match fs::remove_dir_all(from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at("removing", from)(error)),
        _ => Ok(()),
    }
}

/// Writes `directory` as an archive. It gets its name when it is whole and on the disk, and overwrites nothing.
pub(super) fn write(directory: &Path, location: &Path) -> Result<(), Error> {
    let parent = location.parent().unwrap_or(Path::new("/"));
    let stop = AtomicBool::new(false);
    let bounds = Bounds { overlay: false, entries: ENTRIES, bytes: u64::MAX, stop: &stop, owners: None };
    let (file, name) = nameless(parent).map_err(Error::at("creating a file in", parent))?;
    let fill = |file: File| -> Result<(), Error> {
        let mut writer =
            pack::directory(pack::open(directory)?, BufWriter::with_capacity(1 << 20, file), bounds)?;
        writer.flush().map_err(Error::at("writing", location))?;
        let file = writer.into_inner().map_err(|error| Error::at("writing", location)(error.into_error()))?;
        file.sync_all().map_err(Error::at("writing", location))?;
        let link = match &name {
            None => linkat(
                CWD,
                format!("/proc/self/fd/{}", file.as_raw_fd()),
                CWD,
                location,
                AtFlags::SYMLINK_FOLLOW,
            ),
            Some(name) => linkat(CWD, name, CWD, location, AtFlags::empty()),
        };
        match link {
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists(location.to_owned())),
            result => result.map_err(|error| Error::at("naming", location)(error.into()))?,
        }
        // The name as well.
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(Error::at("writing", parent))
    };
    let result = fill(file);
    if let Some(name) = &name {
        let _ = fs::remove_file(name);
    }
    result
}

/// A file that nobody sees and that a crash leaves nothing of; where the file system has no such thing, one with a name.
fn nameless(parent: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR) {
        Ok(file) => Ok((file.into(), None)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let file = tempfile::Builder::new().prefix(".checkpoint-").tempfile_in(parent)?;
            let (file, path) = file.keep().map_err(|error| error.error)?;
            Ok((file, Some(path)))
        }
        Err(error) => Err(error.into()),
    }
}

/// A new file that only root reads.
pub(super) fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn locations_that_can_never_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        fs::write(&there, "").unwrap();
        for location in
            [Path::new(""), Path::new("relative.tar"), Path::new("/"), Path::new("/none/at/all.tar")]
        {
            assert!(matches!(check(location), Err(Error::Location { .. })), "{location:?}");
        }
        assert!(matches!(check(&there.join("")), Err(Error::Location { .. })));
        assert!(matches!(check(&there), Err(Error::Exists(_))));
        assert!(matches!(check(&there.join("below")), Err(Error::Location { .. })));
        check(&directory.path().join("new.tar")).unwrap();
    }

    #[test]
    fn an_archive_is_private_and_overwrites_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("source"), directory.path().join("a.tar"));
        fs::create_dir_all(source.join("checkpoint")).unwrap();
        fs::write(source.join("checkpoint/pages-1.img"), "memory").unwrap();
        write(&source, &target).unwrap();
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o600);
        let mut archive = tar::Archive::new(File::open(&target).unwrap());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["checkpoint/", "checkpoint/pages-1.img"]);
        assert!(matches!(write(&source, &target), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no other file is left");
    }

    #[test]
    fn what_an_opaque_directory_hides_is_listed() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        fs::create_dir_all(upper.join("home")).unwrap();
        fs::create_dir_all(lower.join("home")).unwrap();
        for path in [upper.join("home/kept"), lower.join("home/kept"), lower.join("home/gone")] {
            fs::write(path, "").unwrap();
        }
        let hidden = Hidden { deleted: vec![b"etc/group".to_vec()], opaque: vec![b"home".to_vec()] };
        assert_eq!(deleted(&upper, &[lower], hidden), ["/etc/group", "/home/gone"]);
    }

    #[test]
    fn a_link_that_became_a_directory_hides_nothing_of_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("upper"), directory.path().join("lower"));
        let node = directory.path().join("node");
        for path in [upper.join("home"), upper.join("way/deep"), lower.clone(), node.join("deep")] {
            fs::create_dir_all(path).unwrap();
        }
        for name in ["secret", "deep/secret"] {
            fs::write(node.join(name), "").unwrap();
        }
        for link in ["home", "way"] {
            std::os::unix::fs::symlink(&node, lower.join(link)).unwrap();
        }
        let hidden = Hidden { deleted: Vec::new(), opaque: vec![b"home".to_vec(), b"way/deep".to_vec()] };
        assert_eq!(deleted(&upper, &[lower], hidden), [""; 0]);
    }
}
