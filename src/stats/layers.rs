//! How much containers have written: sizes of their writable layers.
//!
//! One thread walks one layer after another. It rests three times as long as it walked, so that large layers take a quarter
//! of a core at most; a layer is due again half a minute after it was asked for; a walk has an end however large the layer is.
//! A disk that hangs keeps this thread, and nobody else.
//!
//! The container changes the tree meanwhile: every directory is opened below its parent's descriptor and never through a
//! symbolic link, so the walk stays inside.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};

/// How long a walk is good for.
const FRESH: Duration = Duration::from_secs(30);
/// Layers that wait for their walk.
const QUEUE: usize = 4096;
/// Files looked at in one walk.
const MAX_ENTRIES: u64 = 2_000_000;
/// Directories in directories, each an open descriptor.
const MAX_DEPTH: usize = 128;

/// What a writable layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was counted, in nanoseconds since the Unix epoch.
    pub at: i64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

#[derive(Debug, Default)]
struct Layer {
    usage: Option<LayerUsage>,
    walked: Option<Instant>,
    queued: bool,
}

#[derive(Debug)]
pub(super) struct Layers {
    layers: Arc<Mutex<HashMap<String, Layer>>>,
    walks: mpsc::SyncSender<(String, PathBuf)>,
}

impl Layers {
    pub(super) fn start() -> Self {
        let layers: Arc<Mutex<HashMap<String, Layer>>> = Arc::default();
        let (walks, queue) = mpsc::sync_channel::<(String, PathBuf)>(QUEUE);
        let known = Arc::clone(&layers);
        let walker = move || {
            for (id, upper) in queue {
                let began = Instant::now();
                let usage = walk(&upper);
                if let Some(layer) = known.lock().get_mut(&id) {
                    layer.queued = false;
                    layer.walked = Some(Instant::now());
                    layer.usage = usage.or(layer.usage);
                }
                std::thread::sleep(began.elapsed() * 3);
            }
        };
        // Without the thread layers have no sizes; pods run all the same.
        if let Err(error) = std::thread::Builder::new().name("berth-layers".to_owned()).spawn(walker) {
            tracing::error!(%error, "starting the thread that measures writable layers");
        }
        Self { layers, walks }
    }

    /// What the last walk found. If that is old, another is made due. A layer that was counted after its container ended
    /// stays as it is.
    pub(super) fn usage(&self, id: &str, upper: &Path, ended: Option<i64>) -> Option<LayerUsage> {
        let mut layers = self.layers.lock();
        let layer = layers.entry(id.to_owned()).or_default();
        let usage = layer.usage;
        let settled = ended.zip(usage).is_some_and(|(ended, usage)| usage.at > ended);
        let old = layer.walked.is_none_or(|walked| walked.elapsed() >= FRESH);
        if old && !settled && !layer.queued {
            layer.queued = self.walks.try_send((id.to_owned(), upper.to_owned())).is_ok();
        }
        usage
    }

    /// Makes the first walk due, so that there is a figure when somebody asks.
    pub(super) fn first(&self, id: &str, upper: &Path) {
        let mut layers = self.layers.lock();
        let layer = layers.entry(id.to_owned()).or_default();
        if layer.walked.is_none() && !layer.queued {
            layer.queued = self.walks.try_send((id.to_owned(), upper.to_owned())).is_ok();
        }
    }

    /// Forgets all others.
    pub(super) fn keep(&self, known: &HashSet<String>) {
        self.layers.lock().retain(|id, _| known.contains(id));
    }
}

/// Counts what is below a directory, itself included. `None` when it can't be opened.
fn walk(upper: &Path) -> Option<LayerUsage> {
    let at = crate::container::now();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, upper, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&root).ok()?;
    let mut count = Count { usage: LayerUsage { at, ..Default::default() }, linked: HashSet::new() };
    count.add(&stat);
    count.directory(root, 0);
    Some(count.usage)
}

struct Count {
    usage: LayerUsage,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
}

impl Count {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            && stat.st_nlink > 1
            && !self.linked.insert(stat.st_ino)
        {
            return;
        }
        self.usage.inodes += 1;
        // stat(2): blocks of 512 bytes, whatever the file system's own are.
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }

    fn directory(&mut self, directory: OwnedFd, depth: usize) {
        let Ok(entries) = Dir::read_from(&directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if self.usage.inodes >= MAX_ENTRIES {
                return;
            }
            let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.add(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < MAX_DEPTH {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(child) = openat(directory.as_fd(), name, flags, Mode::empty()) {
                    self.directory(child, depth + 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hard_links_count_once_and_symbolic_ones_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let upper = root.path().join("fs");
        std::fs::create_dir_all(upper.join("a/b")).unwrap();
        let empty = walk(&upper).unwrap();
        assert_eq!(empty.inodes, 3);
        std::fs::write(upper.join("a/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(upper.join("a/file"), upper.join("a/b/same")).unwrap();
        std::os::unix::fs::symlink("/", upper.join("out")).unwrap();
        let full = walk(&upper).unwrap();
        assert_eq!(full.inodes, 5);
        let grown = full.bytes - empty.bytes;
        assert!((100_000..120_000).contains(&grown), "{grown}");
        assert_eq!(walk(&root.path().join("gone")), None);
    }

    #[test]
    fn walks_happen_behind_the_caller() {
        let root = tempfile::tempdir().unwrap();
        let layers = Layers::start();
        assert_eq!(layers.usage("a", root.path(), None), None);
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = loop {
            match layers.usage("a", root.path(), None) {
                Some(usage) => break usage,
                None if Instant::now() > deadline => panic!("no walk"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        assert_eq!(found.inodes, 1);
        layers.keep(&HashSet::new());
        assert_eq!(layers.usage("a", root.path(), Some(0)), None);
    }
}
