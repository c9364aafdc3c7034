//! The file system of writable layers, and the names of block devices.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// A file system as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// What it is on: `/dev/vda1`.
    pub device: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// Takes the turn for a look, on a thread that may block. `None` when that takes longer than `limit`: a disk that does not answer
/// keeps its turn, and with it one thread, however often somebody asks.
pub(super) async fn look<T: Send + 'static>(
    turn: &Arc<Semaphore>,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let looking = async {
        let turn = Arc::clone(turn).acquire_owned().await.ok()?;
        let looking = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        looking.await.ok()
    };
    tokio::time::timeout(limit, looking).await.ok().flatten()
}

/// Names of devices that were looked up.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashMap<(u32, u32), String>>);

impl Names {
    /// The file system that a directory is on. It may block for as long as the disk likes.
    pub(super) fn disk(&self, directory: &Path) -> Option<Disk> {
        let stat = rustix::fs::stat(directory).ok()?;
        let space = rustix::fs::statvfs(directory).ok()?;
        let number = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        Some(Disk {
            device: self.name(number),
            bytes: space.f_blocks.saturating_mul(space.f_frsize),
            inodes: space.f_files,
            inodes_free: space.f_ffree,
        })
    }

    /// A device's node below `/dev`; what has none (tmpfs, btrfs) by the source of its mount, or by number.
    pub(super) fn name(&self, number: (u32, u32)) -> String {
        let mut names = self.0.lock();
        let find = || {
            let (major, minor) = number;
            let event = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
            let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            node(&event.unwrap_or_default())
                .or_else(|| source(&mounts(), number))
                .unwrap_or_else(|| format!("{major}:{minor}"))
        };
        names.entry(number).or_insert_with(find).clone()
    }
}

fn node(event: &str) -> Option<String> {
    event.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}"))
}

/// proc_pid_mountinfo(5): the third field is the device, the source stands two after the `-`.
fn source(mounts: &str, (major, minor): (u32, u32)) -> Option<String> {
    let number = format!("{major}:{minor}");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_one_thread() {
        let (turn, begun) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let work = || {
            let (begun, hangs) = (Arc::clone(&begun), Arc::clone(&hangs));
            move || {
                begun.fetch_add(1, Ordering::Relaxed);
                hangs.lock().recv().is_ok()
            }
        };
        for _ in 0..3 {
            assert_eq!(look(&turn, Duration::from_millis(100), work()).await, None);
        }
        while begun.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        answer.send(()).unwrap();
        answer.send(()).unwrap();
        assert_eq!(look(&turn, Duration::from_secs(10), work()).await, Some(true));
    }

    #[test]
    fn devices_have_names() {
        assert_eq!(node("MAJOR=254\nMINOR=1\nDEVNAME=vda1\nDEVTYPE=partition\n").unwrap(), "/dev/vda1");
        let mounts = "21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
                      25 21 0:23 / /run rw shared:5 - tmpfs run rw,size=1k\n";
        assert_eq!(source(mounts, (0, 23)).unwrap(), "run");
        assert_eq!(source(mounts, (0, 24)), None);
        let disk = Names::default().disk(Path::new("/")).unwrap();
        assert!(disk.bytes > 0 && !disk.device.is_empty());
    }
}
