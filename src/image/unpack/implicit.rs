//! Directories that a layer needs but does not bring.
//!
//! An archive may hold `tmp/x` without `tmp`. The directory made for it would cover the one of the layers below, with
//! mode 0755 instead of 1777. Once those are there, it takes their attributes over.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, Timespec, Timestamps, Uid};

use super::root::Root;

/// Gives each of `implicit` in the layer at `layer` the owner, mode, times and attributes that the nearest of `lower`
/// (top first) has for it. One that is nowhere below keeps root's ownership and mode 0755.
pub(crate) fn inherit<P: AsRef<Path>>(
    layer: &Path,
    implicit: &[Vec<u8>],
    lower: &[P],
) -> Result<(), rustix::io::Errno> {
    if implicit.is_empty() {
        return Ok(());
    }
    let own = Root::open(layer)?;
    let lower: Vec<Root> = lower.iter().map(|path| Root::open(path.as_ref())).collect::<Result<_, _>>()?;
    for path in implicit {
        let Ok(directory) = own.open_directory(path) else { continue };
        let Some(below) = lower.iter().find_map(|root| root.open_directory(path).ok()) else { continue };
        let stat = rustix::fs::fstat(&below)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        rustix::fs::fchown(&directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec: i64::try_from(tv_nsec).unwrap_or(0) };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        rustix::fs::futimens(directory.as_fd(), &times)?;
    }
    Ok(())
}
