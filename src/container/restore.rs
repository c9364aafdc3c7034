//! Containers from checkpoints: what CreateContainer does when its image is one.
//!
//! The image of the request is the absolute path of an archive, or an image whose manifest says by an annotation that it holds what
//! is in such an archive (as `buildah` makes them for CRI-O and containerd). The container's root is then the image that the
//! checkpoint was taken over, which must be on the node, and a writable layer with the files of the checkpoint; criu's images go
//! to the shim, which restores them when the container is started.
//!
//! Nothing in a checkpoint says what is mounted or where: that is the request's.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use super::checkpoint::{Error, IMAGES};
use super::snapshot::Layout;
use super::tools::{Restores, Surroundings, Tools};
use crate::image::Image;
use crate::image::unpack::{self, Limits};

/// How long criu may take to restore a container.
pub(super) const LIMIT: Duration = Duration::from_secs(600);
/// Largest of the small files, in bytes.
const SMALL: u64 = 16 << 20;
/// Most of criu's images: some a process, and some for all.
const MOST_IMAGES: usize = 1_000_000;
/// Most names that a checkpoint may say are gone.
const DELETED: usize = 1_000_000;

/// A checkpoint that a container is to be made from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The image below the container's files.
    pub(crate) base: Arc<Image>,
    /// The image that holds the checkpoint, if one does.
    pub(crate) image: Option<Arc<Image>>,
    /// Where its content is, until it moves to the container.
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// An archive's, unpacked.
    Unpacked(TempDir),
    /// A layer of an image: it stays there.
    Layer(PathBuf),
}

/// checkpointctl's `ContainerConfig`, as far as it says what the container was made from.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    rootfs_image: String,
    rootfs_image_ref: String,
    rootfs_image_name: String,
}

/// The checkpoint that `reference` names, if it names one.
///
/// # Errors
/// [`Error`] when it does, and no container can be made from it here.
pub(crate) async fn find(
    tools: &Arc<Tools>,
    pod: &Surroundings,
    reference: &str,
) -> Result<Option<Origin>, Error> {
    let image = tools.images.get(reference).filter(|image| image.manifest.checkpoint);
    let archive = (image.is_none() && reference.starts_with('/')).then(|| PathBuf::from(reference));
    if image.is_none() && archive.is_none() {
        return Ok(None);
    }
    // Says so before anything is done.
    tools.checkpoint.program()?;
    if let Restores::No { why } = &pod.handler.restores {
        return Err(Error::Handler { name: pod.handler.name.clone(), why: why.clone() });
    }
    if pod.user.is_some() {
        return Err(Error::UserNamespace);
    }
    let content = match (&image, archive) {
        (Some(image), _) => {
            let directories = tools.images.lower_dirs(image).await?;
            let found = directories.into_iter().find(|directory| directory.join("config.dump").is_file());
            Content::Layer(found.ok_or_else(|| Error::Broken { what: "config.dump is missing".to_owned() })?)
        }
        (None, Some(path)) => {
            let trash = tools.trash();
            let limits = tools.images.limits();
            let unpacking = move || unpack_archive(&path, &trash, limits);
            Content::Unpacked(tokio::task::spawn_blocking(unpacking).await.map_err(|_| Error::Interrupted)??)
        }
        (None, None) => return Ok(None),
    };
    let directory = content.path();
    check_images(&directory.join(IMAGES))?;
    let config: Option<Config> = json(directory, "config.dump")?;
    let config = config.ok_or_else(|| Error::Broken { what: "config.dump is missing".to_owned() })?;
    let names = config.names();
    let base = names.iter().find_map(|name| tools.images.get(name));
    let base = base.ok_or_else(|| Error::NoBase(names.first().cloned().unwrap_or_default()))?;
    Ok(Some(Origin { base, image, content }))
}

/// Refuses criu's images unless all of them are files. criu runs as root and follows links: one to a file of this node would
/// end up in the container's memory.
fn check_images(directory: &Path) -> Result<(), Error> {
    let broken = |what: String| Err(Error::Broken { what });
    if !directory.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return broken(format!("{IMAGES} is no directory of it"));
    }
    let reading = |error| Error::at("reading", directory)(error);
    for (count, entry) in fs::read_dir(directory).map_err(reading)?.enumerate() {
        let entry = entry.map_err(reading)?;
        if count >= MOST_IMAGES {
            return broken(format!("{IMAGES} has more than {MOST_IMAGES} files"));
        }
        if !entry.file_type().map_err(reading)?.is_file() {
            return broken(format!("{IMAGES}/{} is no file", entry.file_name().display()));
        }
    }
    match directory.join("inventory.img").symlink_metadata() {
        Ok(_) => Ok(()),
        Err(_) => broken(format!("{IMAGES}/inventory.img is missing")),
    }
}

impl Config {
    /// What the image may be known by here, the most exact first.
    fn names(&self) -> Vec<String> {
        let reference = match &self.rootfs_image_ref {
            // CRI-O writes the id alone.
            id if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => format!("sha256:{id}"),
            other => other.clone(),
        };
        [reference, self.rootfs_image_name.clone(), self.rootfs_image.clone()]
            .into_iter()
            .filter(|name| !name.is_empty() && !name.starts_with('/'))
            .collect()
    }
}

impl Content {
    fn path(&self) -> &Path {
        match self {
            Self::Unpacked(directory) => directory.path(),
            Self::Layer(directory) => directory,
        }
    }
}

fn unpack_archive(path: &Path, trash: &Path, limits: Limits) -> Result<TempDir, Error> {
    fs::create_dir_all(trash).map_err(Error::at("making", trash))?;
    let file = open_regular(path)?;
    let directory = tempfile::Builder::new()
        .prefix("restore-")
        .tempdir_in(trash)
        .map_err(Error::at("making a directory in", trash))?;
    unpack_tar(file, directory.path(), limits)?;
    Ok(directory)
}

/// An archive is a file: nothing that a client names is waited for.
fn open_regular(path: &Path) -> Result<File, Error> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => Error::NoArchive(path.to_owned()),
        errno => Error::at("opening", path)(errno.into()),
    })?;
    let file = File::from(file);
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(Error::Broken { what: format!("{} is no file", path.display()) }),
        Err(error) => Err(Error::at("reading", path)(error)),
    }
}

/// Unpacks below `target`, as a layer is; returns the directories that it needs without having them.
fn unpack_tar(source: impl Read, target: &Path, limits: Limits) -> Result<Vec<Vec<u8>>, Error> {
    let count = Rc::new(Cell::new(0));
    let counted = Counted { inner: source, count: Rc::clone(&count) };
    let unpacked = unpack::unpack(BufReader::with_capacity(128 << 10, counted), &count, target, limits);
    Ok(unpacked.map_err(Error::Archive)?.implicit)
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// One of the small files, if it is there. It came from outside: it may be anything.
fn json<T: for<'a> Deserialize<'a>>(directory: &Path, name: &str) -> Result<Option<T>, Error> {
    let path = directory.join(name);
    let Ok(found) = path.symlink_metadata() else { return Ok(None) };
    if !found.is_file() || found.len() > SMALL {
        return Err(Error::Broken { what: format!("{name} is no small file") });
    }
    let bytes = fs::read(&path).map_err(Error::at("reading", &path))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Error::Broken { what: format!("{name}: {error}") })
}

impl Origin {
    /// Puts the checkpoint's files into the container's writable layer, and its memory beside it. Blocking. Returns the
    /// directory of criu's images.
    pub(crate) fn settle(
        &self,
        layout: &Layout,
        lower: &[PathBuf],
        limits: Limits,
    ) -> Result<PathBuf, Error> {
        settle(&self.content, layout, lower, limits)
    }
}

fn settle(content: &Content, layout: &Layout, lower: &[PathBuf], limits: Limits) -> Result<PathBuf, Error> {
    let directory = match content {
        Content::Layer(directory) => directory.clone(),
        Content::Unpacked(unpacked) => {
            let home = layout.writable.join("restore");
            fs::rename(unpacked.path(), &home).map_err(Error::at("moving the checkpoint to", &home))?;
            home
        }
    };
    let upper = layout.upper();
    let diff = directory.join("rootfs-diff.tar");
    let mut implicit = Vec::new();
    if diff.symlink_metadata().is_ok_and(|found| found.is_file()) {
        implicit = unpack_tar(open_regular(&diff)?, &upper, limits)?;
    }
    let deleted: Vec<String> = json(&directory, "deleted.files")?.unwrap_or_default();
    if !deleted.is_empty() {
        implicit.extend(unpack_tar(marks(&deleted, lower)?.as_slice(), &upper, limits)?);
    }
    unpack::inherit(&upper, &implicit, lower)
        .map_err(|errno| Error::at("giving owners to", &upper)(errno.into()))?;
    Ok(directory.join(IMAGES))
}

/// An archive of a layer that says of each name below `lower` that it is gone.
fn marks(deleted: &[String], lower: &[PathBuf]) -> Result<Vec<u8>, Error> {
    if deleted.len() > DELETED {
        return Err(Error::Broken { what: format!("deleted.files has more than {DELETED} names") });
    }
    let mut archive = tar::Builder::new(Vec::new());
    for name in deleted {
        let relative = Path::new(name.trim_start_matches('/'));
        // Looked up as a name only: what is there through a link is somewhere else.
        let there = lower.iter().any(|layer| layer.join(relative).symlink_metadata().is_ok());
        let (Some(parent), Some(last), true) = (relative.parent(), relative.file_name(), there) else {
            continue;
        };
        let mark = parent.join(format!(".wh.{}", last.to_string_lossy()));
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        let broken = |error: io::Error| Error::Broken { what: format!("deleted.files: {name:?}: {error}") };
        archive.append_data(&mut header, mark, io::empty()).map_err(broken)?;
    }
    archive.into_inner().map_err(|error| Error::Broken { what: format!("deleted.files: {error}") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    fn origin(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<PathBuf, Error>, Layout) {
        let home = tempfile::tempdir().unwrap();
        let content = tempfile::tempdir_in(home.path()).unwrap();
        for (name, bytes) in files {
            fs::write(content.path().join(name), bytes).unwrap();
        }
        let layout = Layout { bundle: home.path().join("bundle"), writable: home.path().join("writable") };
        fs::create_dir_all(layout.upper()).unwrap();
        let lower = home.path().join("lower");
        fs::create_dir_all(lower.join("etc/deep")).unwrap();
        fs::write(lower.join("etc/group"), "").unwrap();
        let settled = settle(&Content::Unpacked(content), &layout, &[lower], Limits::default());
        (home, settled, layout)
    }

    fn tar_of(name: &str, text: &[u8]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, text).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn files_come_back_and_what_was_deleted_stays_away() {
        let diff = tar_of("new", b"text");
        let deleted = br#"["/etc/group", "/etc/deep", "/never/was"]"#;
        let (_home, settled, layout) = origin(&[("rootfs-diff.tar", &diff), ("deleted.files", deleted)]);
        assert_eq!(settled.unwrap(), layout.writable.join("restore/checkpoint"));
        assert_eq!(fs::read(layout.upper().join("new")).unwrap(), b"text");
        for gone in ["etc/group", "etc/deep"] {
            let found = layout.upper().join(gone).symlink_metadata().unwrap();
            assert!(found.file_type().is_char_device(), "{gone}: {found:?}");
        }
        assert!(!layout.upper().join("never").exists());
    }

    #[test]
    fn nothing_leads_out_of_the_layer() {
        for name in ["../out", "a/../../out"] {
            let (home, settled, _) = origin(&[("rootfs-diff.tar", &tar_of(name, b"x"))]);
            assert!(matches!(settled, Err(Error::Archive(_))), "{name}");
            assert!(
                !home.path().join("out").exists() && !home.path().join("writable/out").exists(),
                "{name}"
            );
        }
        // A name counts from the layer's root, whatever it begins with.
        let (home, settled, layout) = origin(&[("rootfs-diff.tar", &tar_of("/out", b"x"))]);
        settled.unwrap();
        assert_eq!(fs::read(layout.upper().join("out")).unwrap(), b"x");
        drop(home);
        let (home, settled, layout) =
            origin(&[("deleted.files", br#"["/../lower/etc/group", "/etc/../../x"]"#)]);
        assert!(settled.is_err(), "names that climb are refused");
        assert!(home.path().join("lower/etc/group").is_file());
        assert!(fs::read_dir(layout.upper()).unwrap().next().is_none());
    }

    #[test]
    fn what_is_no_checkpoint_says_so() {
        let (_home, settled, _) = origin(&[("deleted.files", b"[1, 2")]);
        assert!(matches!(settled, Err(Error::Broken { .. })));
        let (_home, settled, _) = origin(&[("rootfs-diff.tar", b"no archive at all")]);
        assert!(settled.is_err());
    }

    #[test]
    fn images_of_memory_are_files() {
        let home = tempfile::tempdir().unwrap();
        let images = home.path().join(IMAGES);
        let said = |images: &Path| check_images(images).unwrap_err().to_string();
        assert!(said(&images).contains("no directory"));
        fs::create_dir(&images).unwrap();
        assert!(said(&images).contains("inventory.img is missing"));
        fs::write(images.join("inventory.img"), "x").unwrap();
        fs::write(images.join("pages-1.img"), "x").unwrap();
        check_images(&images).unwrap();
        // criu would read the node's own file as the container's memory.
        std::os::unix::fs::symlink("/etc/shadow", images.join("pages-2.img")).unwrap();
        assert!(said(&images).contains("pages-2.img is no file"));
        fs::remove_file(images.join("pages-2.img")).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&images, &link).unwrap();
        assert!(said(&link).contains("no directory"));
    }

    #[test]
    fn images_are_found_by_what_others_write() {
        let id = "ab".repeat(32);
        let config =
            Config { rootfs_image_ref: id.clone(), rootfs_image: "nginx".into(), ..Config::default() };
        assert_eq!(config.names(), [format!("sha256:{id}"), "nginx".to_owned()]);
    }
}
