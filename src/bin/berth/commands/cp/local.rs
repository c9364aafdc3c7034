//! The side of a copy that is here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use berth::image::owners::Owners;
use berth::image::{Limits, pack, unpack};
use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;
use tokio_util::io::SyncIoBridge;

use super::There;

/// Bytes between the disk and the connection.
const BUFFER: usize = 256 << 10;

/// What is at a path here.
pub(super) fn there(path: &Path) -> Result<There> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(There::Directory),
        Ok(_) => Ok(There::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(There::Nothing),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Opens what is to be sent, and says whether it is a directory.
pub(super) fn open(path: &Path, follow: bool) -> Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let thing = opened.map_err(io::Error::from).with_context(|| format!("opening {}", path.display()))?;
    let mode = rustix::fs::fstat(&thing).map_err(io::Error::from)?.st_mode;
    Ok((thing, FileType::from_raw_mode(mode) == FileType::Directory))
}

/// Sends it as an archive in which it is called `name`. The second says how reading went.
pub(super) fn pack(
    thing: OwnedFd,
    name: String,
) -> (impl AsyncRead + Send + 'static, JoinHandle<Result<(), pack::Error>>) {
    let (sink, source) = tokio::io::duplex(BUFFER);
    let mut writer = SyncIoBridge::new(sink);
    let work = tokio::task::spawn_blocking(move || {
        let (limits, stop) = (Limits::default(), AtomicBool::new(false));
        pack::send(thing, name.as_bytes(), &mut writer, &limits, &stop)?;
        writer.shutdown().map_err(pack::Error::Write)
    });
    (source, work)
}

/// Unpacks an archive in a directory that is there.
pub(super) async fn extract(
    directory: &Path,
    archive: impl AsyncRead + Send + Unpin + 'static,
    keep_owners: bool,
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).map_err(io::Error::from);
    let opened = opened.with_context(|| format!("opening the directory {}", directory.display()))?;
    let reader = SyncIoBridge::new(archive);
    let owners = keep_owners.then(Owners::same);
    let work =
        tokio::task::spawn_blocking(move || unpack::extract(opened, reader, owners, &Limits::default()));
    match work.await? {
        // What the daemon said is inside what reading said.
        Err(unpack::Error::Read(error)) => match error.downcast::<crate::failure::Refusal>() {
            Ok(refusal) => Err(refusal.into()),
            Err(error) => bail!("the copy was cut off: {error}"),
        },
        other => other.with_context(|| format!("unpacking in {}", directory.display())),
    }
}
