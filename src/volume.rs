//! Volumes: directories with names, kept until they are removed, whatever pods use them.
//!
//! ```text
//! <root>/volumes/<name>/volume.json     the record: written with the directory, by one rename
//! <root>/volumes/<name>/data/           what containers mount
//! <root>/volumes/.<something>           being made or removed: swept at the next start
//! ```
//!
//! A volume is filled once, at its first use, with what the image has at the place it is mounted to; one that has anything in
//! it is left as it is. Everything here blocks: callers run it beside the workers. One change at a time, a fill among them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Classify, Kind};
use crate::image::tree;

/// Longest name.
const LONGEST: usize = 128;
/// Most volumes.
const MOST: usize = 10_000;
/// Largest record that is read.
const RECORD_LIMIT: u64 = 1 << 20;
/// Most labels of a volume, and most bytes of one.
const LABELS: (usize, usize) = (256, 4096);

/// Why a volume can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none.
    #[error(
        "{0:?} is no name of a volume: 1 to 128 letters, digits, `.`, `_` and `-`, the first a letter or digit"
    )]
    Name(String),
    /// Labels without end.
    #[error("a volume has at most {} labels of {} bytes", LABELS.0, LABELS.1)]
    Labels,
    /// There is none of that name.
    #[error("volume {0:?} not found")]
    NotFound(String),
    /// There is one of that name, with other labels.
    #[error("volume {0:?} is there already, with other labels")]
    Exists(String),
    /// Containers use it.
    #[error("volume {name} is used by {}: remove them first", .users.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// Containers.
        users: Vec<String>,
    },
    /// Something is mounted on it, or in it.
    #[error("volume {name} has a mount at {}: unmount it first, what is in it is not the volume's", path.display())]
    Mounted {
        /// The volume.
        name: String,
        /// The mount.
        path: PathBuf,
    },
    /// Too many.
    #[error("there are {MOST} volumes already: `berth volume prune` removes those that nothing uses")]
    TooMany,
    /// A file or directory.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Name(_) | Self::Labels => Kind::InvalidArgument,
            Self::NotFound(_) => Kind::NotFound,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::InUse { .. } | Self::Mounted { .. } => Kind::FailedPrecondition,
            Self::TooMany => Kind::ResourceExhausted,
            Self::Io { .. } => Kind::Internal,
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The directory that containers mount.
    pub path: PathBuf,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// As its maker wants.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    created_at: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// It was used before: it is not filled any more.
    #[serde(default)]
    used: bool,
}

/// The volumes of this machine. Clones are the same volumes.
#[derive(Clone, Debug)]
pub struct Volumes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// One change at a time.
    change: Mutex<()>,
    serial: AtomicU64,
}

impl Volumes {
    /// Opens the volumes below `root`, or makes the place for them, and removes what an earlier life left half done.
    ///
    /// # Errors
    /// When the directory can't be used.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let directory = root.join("volumes");
        std::fs::create_dir_all(&directory).map_err(Error::io("making", &directory))?;
        for entry in std::fs::read_dir(&directory).map_err(Error::io("reading", &directory))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".")
                && let Err(error) = crate::container::delete_tree(&entry.path())
            {
                tracing::warn!(error = crate::error::chain(&error), "what is left of a volume stays");
            }
        }
        Ok(Self(Arc::new(Inner { directory, change: Mutex::new(()), serial: AtomicU64::new(0) })))
    }

    fn home(&self, name: &str) -> Result<PathBuf, Error> {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !first || name.len() > LONGEST || !name.bytes().all(plain) {
            return Err(Error::Name(name.chars().take(LONGEST).collect()));
        }
        Ok(self.0.directory.join(name))
    }

    fn aside(&self, name: &str) -> PathBuf {
        let number = self.0.serial.fetch_add(1, Ordering::Relaxed);
        self.0.directory.join(format!(".{name}.{}.{number}", std::process::id()))
    }

    fn read(&self, name: &str) -> Result<(Volume, Record), Error> {
        let home = self.home(name)?;
        let path = home.join("volume.json");
        let text = match std::fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(name.to_owned()));
            }
            file => {
                io::read_to_string(io::Read::take(file.map_err(Error::io("opening", &path))?, RECORD_LIMIT))
            }
        };
        let text = text.map_err(Error::io("reading", &path))?;
        let record: Record =
            serde_json::from_str(&text).map_err(|error| Error::io("reading", &path)(error.into()))?;
        let (created_at, labels) = (record.created_at, record.labels.clone());
        Ok((Volume { name: name.to_owned(), path: home.join("data"), created_at, labels }, record))
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, name: &str) -> Result<Volume, Error> {
        self.read(name).map(|(volume, _)| volume)
    }

    /// All volumes, by name. One whose record can't be read is left out, with a warning.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let directory = &self.0.directory;
        let mut volumes = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(Error::io("reading", directory))?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            match self.get(&name) {
                Ok(volume) => volumes.push(volume),
                Err(Error::Name(_) | Error::NotFound(_)) => {}
                Err(error) => tracing::warn!(%error, name, "a volume is left out"),
            }
        }
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(volumes)
    }

    /// Makes a volume; one that is there with these labels will do.
    ///
    /// # Errors
    /// [`Error::Exists`] when its labels are others, [`Error::TooMany`], [`Error::Name`], [`Error::Labels`].
    pub fn create(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<Volume, Error> {
        let _one = self.0.change.lock();
        let home = self.home(name)?;
        let long = |text: &String| text.len() > LABELS.1;
        if labels.len() > LABELS.0 || labels.iter().any(|(key, value)| long(key) || long(value)) {
            return Err(Error::Labels);
        }
        match self.get(name) {
            Ok(volume) if volume.labels == *labels => return Ok(volume),
            Ok(_) => return Err(Error::Exists(name.to_owned())),
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        if self.list()?.len() >= MOST {
            return Err(Error::TooMany);
        }
        let aside = self.aside(name);
        let data = aside.join("data");
        std::fs::create_dir_all(&data).map_err(Error::io("making", &data))?;
        let created_at = crate::container::now();
        write(&aside, &Record { created_at, labels: labels.clone(), used: false })?;
        std::fs::rename(&aside, &home).map_err(Error::io("making", &home))?;
        sync(&self.0.directory);
        self.get(name)
    }

    /// Has a volume ready for a container: made when it is missing, and filled by `fill` if it was never used and is empty.
    ///
    /// # Errors
    /// As [`Volumes::create`], or what `fill` says.
    pub fn ready(&self, name: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<Volume, Error> {
        if let Err(Error::NotFound(_)) = self.get(name) {
            self.create(name, &BTreeMap::new())?;
        }
        let _one = self.0.change.lock();
        let (volume, record) = self.read(name)?;
        if record.used {
            return Ok(volume);
        }
        let home = self.home(name)?;
        let empty =
            std::fs::read_dir(&volume.path).map_err(Error::io("reading", &volume.path))?.next().is_none();
        if empty {
            // Whole or not at all: what a killed daemon left is in the way of nobody.
            let aside = home.join("filling");
            tree::remove_path(&aside).map_err(Error::io("removing", &aside))?;
            fill(&aside).map_err(Error::io("filling", &volume.path))?;
            // On the disk before the record says that it is: nobody fills it again.
            let synced = std::fs::File::open(&aside).and_then(|filled| Ok(rustix::fs::syncfs(filled)?));
            synced.map_err(Error::io("writing to the disk", &volume.path))?;
            std::fs::rename(&aside, &volume.path).map_err(Error::io("filling", &volume.path))?;
        }
        write(&home, &Record { used: true, ..record })?;
        Ok(volume)
    }

    /// Removes a volume with all that is in it, if `users` knows nobody who mounts it.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotFound`].
    pub fn remove(&self, name: &str, users: impl FnOnce(&Path) -> Vec<String>) -> Result<(), Error> {
        let _one = self.0.change.lock();
        let volume = self.get(name)?;
        let users = users(&volume.path);
        if !users.is_empty() {
            return Err(Error::InUse { name: name.to_owned(), users });
        }
        let (home, aside) = (self.home(name)?, self.aside(name));
        // A disk or a share that somebody mounted there: its files are not ours to delete.
        let mounted =
            crate::container::mounted_below(&home).map_err(Error::io("looking for mounts below", &home))?;
        if let Some(path) = mounted {
            return Err(Error::Mounted { name: name.to_owned(), path });
        }
        std::fs::rename(&home, &aside).map_err(Error::io("removing", &home))?;
        sync(&self.0.directory);
        tree::remove_path(&aside).map_err(Error::io("removing", &aside))
    }
}

fn write(home: &Path, record: &Record) -> Result<(), Error> {
    let path = home.join("volume.json");
    let write = || {
        let temporary = home.join("volume.json.tmp");
        let mut file = std::fs::File::create(&temporary)?;
        serde_json::to_writer(&mut file, record)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(Error::io("writing", &path))
}

fn sync(directory: &Path) {
    if let Ok(directory) = std::fs::File::open(directory) {
        let _ = directory.sync_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(root.path()).unwrap();
        (root, volumes)
    }

    #[test]
    fn names_lead_nowhere_else() {
        let (_root, volumes) = volumes();
        for wrong in ["", ".", "..", ".hidden", "a/b", "../a", "a b", "-a", &"x".repeat(129)] {
            assert!(matches!(volumes.create(wrong, &BTreeMap::new()), Err(Error::Name(_))), "{wrong}");
            assert!(matches!(volumes.get(wrong), Err(Error::Name(_))), "{wrong}");
        }
        volumes.create("a.b_c-1", &BTreeMap::new()).unwrap();
    }

    #[test]
    fn made_once_and_kept() {
        let (root, volumes) = volumes();
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes.create("data", &labels).unwrap();
        assert_eq!(volumes.create("data", &labels).unwrap(), made);
        assert!(matches!(volumes.create("data", &BTreeMap::new()), Err(Error::Exists(_))));
        std::fs::create_dir(root.path().join("volumes/.data.1.1")).unwrap();
        let again = Volumes::open(root.path()).unwrap();
        assert_eq!(again.list().unwrap(), [made]);
        assert!(!root.path().join("volumes/.data.1.1").exists(), "what was half done is gone");
    }

    #[test]
    fn filled_at_the_first_use_only() {
        let (_root, volumes) = volumes();
        let fill = |text: &'static str| {
            move |path: &Path| {
                std::fs::create_dir(path)?;
                std::fs::write(path.join("file"), text)
            }
        };
        let broken = volumes.ready("data", |path| {
            std::fs::create_dir(path)?;
            Err(io::Error::other("disk full"))
        });
        assert!(matches!(broken, Err(Error::Io { .. })));
        let volume = volumes.ready("data", fill("first")).unwrap();
        let file = volume.path.join("file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "first");
        std::fs::remove_file(&file).unwrap();
        volumes.ready("data", fill("second")).unwrap();
        assert!(!file.exists(), "what was emptied stays empty");
        // One that has something is not touched.
        let other = volumes.create("other", &BTreeMap::new()).unwrap();
        std::fs::write(other.path.join("mine"), "x").unwrap();
        volumes.ready("other", fill("image")).unwrap();
        assert!(!other.path.join("file").exists());
    }

    #[test]
    fn what_is_mounted_in_one_is_not_deleted_with_it() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let (_root, volumes) = volumes();
        let path = volumes.create("data", &BTreeMap::new()).unwrap().path;
        // The mount is one of a thread's own: nobody else sees it.
        let test = std::thread::spawn(move || {
            let none: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("share"), &path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            std::fs::write(path.join("precious"), "x").unwrap();
            let refused = volumes.remove("data", |_| Vec::new());
            assert!(matches!(refused, Err(Error::Mounted { path: at, .. }) if at == path));
            assert!(path.join("precious").exists());
            umount2(&path, MntFlags::MNT_DETACH).unwrap();
            volumes.remove("data", |_| Vec::new()).unwrap();
        });
        test.join().unwrap();
    }

    #[test]
    fn what_is_used_stays() {
        let (_root, volumes) = volumes();
        volumes.create("data", &BTreeMap::new()).unwrap();
        let refused = volumes.remove("data", |_| vec!["web".into()]);
        assert!(matches!(refused, Err(Error::InUse { users, .. }) if users == ["web"]));
        volumes.remove("data", |_| Vec::new()).unwrap();
        assert!(matches!(volumes.remove("data", |_| Vec::new()), Err(Error::NotFound(_))));
        assert!(volumes.list().unwrap().is_empty());
    }
}
